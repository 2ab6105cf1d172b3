// Package gateway gives programs in any language locks over HTTP, and over NATS
// request-reply. A Gateway is an http.Handler that programs mount:
//
//	gw, err := gateway.New(ctx, gateway.Config{Conn: nc, Client: "gateway"})
//	if err != nil {
//		return err
//	}
//	defer gw.Close()
//	http.ListenAndServe("127.0.0.1:8080", gw)
//
// At / it serves a dashboard: a page with the locks, nodes and events, which uses the same API.
//
// The command "qlock gateway" does this with listeners, limits and flags.
//
// # Leases
//
// A lease is one caller's attempt to acquire one lock, from the request to its end. It is
// one hold of a [qlock.Locker] in this process. Its id is a secret: whoever knows it can
// renew and release it.
//
// Every answer that says "held" tells for how long. The caller counts from the moment at
// which it sent the request, by its own clock: it holds the lock until that moment plus
// handled_ms plus expires_in_ms. The nodes' votes are valid for longer than that, without
// any further act of the gateway. So a gateway may pause, crash or answer late, and no
// caller believes for too long that it holds a lock. docs/gateway.md has the rules G1 to
// G10 in full.
package gateway
