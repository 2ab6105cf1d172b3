// Package loopback reserves ports of 127.0.0.1 for servers that stop and start again. While
// a server is down, another program may get its port: now and then a program that asks for
// any free port gets that one.
package loopback

// Port is a reserved port.
type Port struct {
	Number int // 0, any free port, where ports cannot be reserved
	close  func() error
}

// Close releases the port. Further calls do nothing.
func (p *Port) Close() error {
	if p.close == nil {
		return nil
	}
	f := p.close
	p.close = nil
	return f()
}
