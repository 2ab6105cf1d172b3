package store_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/qlock/qlock"
	"github.com/qlock/qlock/store"
)

func next(value []byte) []byte { return append(value, '+') }

func ExampleStore_Under() {
	_ = func(ctx context.Context, js jetstream.JetStream, locker *qlock.Locker) error {
		s, err := store.Open(ctx, js, "orders") // or Create, or Prepare for a bucket that is there
		if err != nil {
			return err
		}
		err = s.Under(ctx, locker, "orders.42", func(ctx context.Context, v *store.View) error {
			var last []byte
			e, err := v.Get(ctx, "orders.42") // never older than what the last holder wrote
			if err == nil {
				last = e.Value()
			} else if !errors.Is(err, jetstream.ErrKeyNotFound) { // a new bucket is empty
				return err
			}
			_, err = v.Put(ctx, "orders.42", next(last)) // ErrFenced if this holder's time is over
			return err
		})
		return err
	}
}

func ExampleView_Do() {
	_ = func(ctx context.Context, v *store.View, b []byte) error {
		res, err := v.Do(ctx, store.Once("pay-7", time.Hour), store.Put("order.7", b), store.Get("rate"), store.Add("total", 1))
		if err != nil && !errors.Is(err, store.ErrDuplicate) {
			return err
		}
		fmt.Println("orders:", res.Number("total")) // of the first call, if this is a repeat
		return nil
	}
}

func ExampleStore_Watch() {
	_ = func(ctx context.Context, s *store.Store) error {
		changes, err := s.Watch(ctx, "orders.>")
		if err != nil {
			return err
		}
		for e, err := range changes {
			if err != nil {
				return err
			}
			fmt.Println(e.Key(), e.Revision(), string(e.Value()))
		}
		return nil
	}
}
