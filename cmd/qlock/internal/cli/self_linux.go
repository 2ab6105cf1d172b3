package cli

import "os"

// thisProgram returns the file of the running program. An upgrade may have replaced or
// removed it. In that case the result is the kernel's name for the running file, which is
// less informative in a list of processes.
func thisProgram() (string, error) {
	const kernels = "/proc/self/exe"
	path, err := os.Executable()
	running, errRunning := os.Stat(kernels)
	if errRunning != nil { // there is no /proc
		return path, err
	}
	if err == nil {
		if there, err := os.Stat(path); err == nil && os.SameFile(there, running) {
			return path, nil
		}
	}
	return kernels, nil
}
