//go:build unix

package chaos

import (
	"github.com/qlock/qlock/integration/internal/child"
)

// now is the clock of all that the processes and the supervisor say.
var now = child.Now

// launch starts a child. What it says goes to hear, in order.
func launch(dir, name string, r role, hear func(line)) (*child.Process, error) {
	return child.Launch(dir, name, roleVariable, r, hear, func(why string) { hear(line{Kind: broken, At: now(), Text: why}) })
}
