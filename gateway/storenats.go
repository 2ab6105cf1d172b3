package gateway

import "strings"

// The store at the NATS door. With Config.Callers, the subject may have bucket and key behind
// the caller, for permissions to guard: store-get.billing.orders.42 is the key 42 of the bucket
// orders.

var storeVerbs = []verb{
	{"stores", false, func(g *Gateway, c *call, body []byte) (int, any, *Problem) {
		if _, p := decode[struct{}](body); p != nil {
			return 0, nil, p
		}
		return g.verbView(c, g.bucketsView(c.principal))
	}},
	{"store", true, func(g *Gateway, c *call, body []byte) (int, any, *Problem) {
		in, p := decode[BucketRequest](body)
		if p == nil && in.Pattern != "" {
			p = invalid("pattern is for store-keys")
		}
		if p == nil {
			in.Bucket, p = c.bucketOf(in.Bucket)
		}
		if p != nil {
			return 0, nil, p
		}
		return g.verbView(c, g.bucketView(c.principal, in.Bucket))
	}},
	{"store-keys", true, func(g *Gateway, c *call, body []byte) (int, any, *Problem) {
		in, p := decode[BucketRequest](body)
		if p == nil {
			in.Bucket, p = c.bucketOf(in.Bucket)
		}
		if p != nil {
			return 0, nil, p
		}
		return g.verbView(c, g.keysView(c.principal, in.Bucket, in.Pattern))
	}},
	{"store-get", true, func(g *Gateway, c *call, body []byte) (int, any, *Problem) {
		in, p := decode[GetRequest](body)
		if p == nil {
			p = c.keyOf(&in.Bucket, &in.Key)
		}
		if p != nil {
			return 0, nil, p
		}
		if in.Wait != "" && in.After == nil {
			return 0, nil, invalid("a request that waits needs after, to know for what")
		}
		a, _, p := g.get(c, in, 0)
		return 200, a, p
	}},
	{"store-put", true, func(g *Gateway, c *call, body []byte) (int, any, *Problem) {
		in, p := decode[PutRequest](body)
		if p == nil {
			p = c.keyOf(&in.Bucket, &in.Key)
		}
		if p != nil {
			return 0, nil, p
		}
		a, p := g.put(c, in)
		if in.Create {
			return 201, a, p
		}
		return 200, a, p
	}},
	{"store-delete", true, func(g *Gateway, c *call, body []byte) (int, any, *Problem) {
		in, p := decode[DeleteRequest](body)
		if p == nil {
			p = c.keyOf(&in.Bucket, &in.Key)
		}
		if p != nil {
			return 0, nil, p
		}
		_, p = g.write(c, in.Bucket, in.Lease, Operation{Op: "delete", Key: in.Key, Revision: in.Revision})
		return 204, nil, p
	}},
	{"store-add", true, func(g *Gateway, c *call, body []byte) (int, any, *Problem) {
		in, p := decode[AddRequest](body)
		if p == nil {
			p = c.keyOf(&in.Bucket, &in.Key)
		}
		if p != nil {
			return 0, nil, p
		}
		a, p := g.write(c, in.Bucket, in.Lease, Operation{Op: "add", Key: in.Key, By: in.By})
		return 200, a, p
	}},
	{"store-transact", true, func(g *Gateway, c *call, body []byte) (int, any, *Problem) {
		in, p := decode[TransactionRequest](body)
		if p == nil && c.resource != "" && in.Lock != nil {
			p = invalid("permissions guard the bucket in the subject, and not the lock in the body: acquire the lock first, and give its lease")
		}
		if p == nil {
			in.Bucket, p = c.bucketOf(in.Bucket)
		}
		if p != nil {
			return 0, nil, p
		}
		a, p := g.transact(c, countedAs(in), in)
		return 200, a, p
	}},
}

// bucketOf is the one bucket that a request gives, in its subject or in its body.
func (c *call) bucketOf(bucket string) (string, *Problem) {
	switch {
	case c.resource == "":
		return bucket, nil
	case bucket != "":
		return "", invalid("the bucket stands in the subject, so the body must not have it")
	}
	return c.resource, nil
}

// keyOf is the same for bucket and key.
func (c *call) keyOf(bucket, key *string) *Problem {
	switch {
	case c.resource == "":
		return nil
	case *bucket != "" || *key != "":
		return invalid("bucket and key stand in the subject, so the body must not have them")
	}
	*bucket, *key, _ = strings.Cut(c.resource, ".")
	return nil
}

// messageOf is how large the body of a verb may be.
func (g *Gateway) messageOf(v *verb) int64 {
	switch v.name {
	case "store-put", "store-transact":
		return max(g.limits.Transaction, g.limits.Value)
	}
	return g.limits.Body
}
