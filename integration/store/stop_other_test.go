//go:build !unix

package store

// Processes cannot be stopped here: they go on.
func (p *process) stop()   {}
func (p *process) resume() {}
