package cli

import "os"

// thisProgram is the file of the program that runs. An upgrade may have put another in
// its place, or none; the one that runs is known to the kernel, by a name that tells
// less to who looks at processes.
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
