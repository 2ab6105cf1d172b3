package driver

import "testing"

// Goroutines may be added to a group while others wait for it. A sync.WaitGroup panics here.
func TestGroup(t *testing.T) {
	for range 100 {
		var g group
		g.Go(func() {})
		added, stop := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(added)
			for {
				select {
				case <-stop:
					return
				default:
					g.Go(func() {})
				}
			}
		}()
		for range 10 {
			g.Wait()
		}
		close(stop)
		<-added
		g.Wait()
		if g.running != 0 {
			t.Fatalf("Wait returned while %d run", g.running)
		}
	}
}
