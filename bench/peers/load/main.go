// Places orders on the plain services over HTTP/1.1 keep-alive, closed loop, then waits until every acknowledged order has its
// last row, the customer's view, in PostgreSQL, and checks that every step of each is there.
//
//	load -url http://127.0.0.1:18080/orders -dsn postgres://… -c 128 -t 8 -items 1000
//
// orders_per_s = acknowledged and finished orders / (last commit of a last step - first request).
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"os"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

func main() {
	url := flag.String("url", "", "where orders are posted")
	dsn := flag.String("dsn", "", "the services' database")
	clients := flag.Int("c", 128, "orders at a time")
	seconds := flag.Float64("t", 8, "how long orders are placed")
	drain := flag.Float64("drain", 45, "how long to wait for the rest to finish, at most")
	warm := flag.Int("warm", 500, "orders before the measured ones")
	items := flag.Int("items", 1000, "distinct items ordered")
	flag.Parse()
	ctx := context.Background()
	db, err := pgx.Connect(ctx, *dsn)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	client := &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: *clients + 8, DisableCompression: true},
		Timeout:   40 * time.Second,
	}
	place := func(id string, r *rand.Rand) error {
		body := fmt.Sprintf(`{"order_id":"%s","customer_id":%d,"item_id":%d,"qty":%d,"amount":%d}`,
			id, r.Intn(10000), 1+r.Intn(*items), 1+r.Intn(3), 100+r.Intn(9000))
		response, err := client.Post(*url, "application/json", bytes.NewReader([]byte(body)))
		if err != nil {
			return err
		}
		answer, _ := io.ReadAll(response.Body)
		response.Body.Close()
		if response.StatusCode != 200 {
			return fmt.Errorf("%d %s", response.StatusCode, answer)
		}
		return nil
	}
	run := fmt.Sprintf("%x", time.Now().UnixNano())
	count := func(prefix string) (n int64) {
		if err := db.QueryRow(ctx, "select count(*) from order_view where order_id like $1", prefix+run+"-%").Scan(&n); err != nil {
			panic(err)
		}
		return
	}

	var group sync.WaitGroup
	var warmed, acknowledged, failed, numbered atomic.Int64
	var firstError atomic.Value
	for i := 0; i < min(*clients, 32); i++ {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			r := rand.New(rand.NewSource(int64(i)))
			for n := warmed.Add(1); n <= int64(*warm); n = warmed.Add(1) {
				if err := place(fmt.Sprintf("w%s-%d", run, n), r); err != nil {
					firstError.CompareAndSwap(nil, err.Error())
				}
			}
		}(i)
	}
	group.Wait()
	for t := time.Now(); time.Since(t) < 20*time.Second && count("w") < int64(*warm); {
		time.Sleep(200 * time.Millisecond)
	}

	latencies := make([][]float64, *clients)
	started := time.Now()
	end := started.Add(time.Duration(*seconds * float64(time.Second)))
	for i := 0; i < *clients; i++ {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			r := rand.New(rand.NewSource(started.UnixNano() + int64(i)))
			for time.Now().Before(end) {
				sent := time.Now()
				if err := place(fmt.Sprintf("o%s-%d", run, numbered.Add(1)), r); err != nil {
					failed.Add(1)
					firstError.CompareAndSwap(nil, err.Error())
					time.Sleep(20 * time.Millisecond)
					continue
				}
				acknowledged.Add(1)
				latencies[i] = append(latencies[i], float64(time.Since(sent).Microseconds())/1000)
			}
		}(i)
	}
	group.Wait()
	for t := time.Now(); time.Since(t).Seconds() < *drain && count("o") < acknowledged.Load(); {
		time.Sleep(250 * time.Millisecond)
	}
	var finished, missing int64
	var last time.Time
	if err := db.QueryRow(ctx, "select count(*), coalesce(max(updated_at), now()) from order_view where order_id like $1",
		"o"+run+"-%").Scan(&finished, &last); err != nil {
		panic(err)
	}
	if err := db.QueryRow(ctx, `select count(*) from order_view v where order_id like $1 and not (
			exists(select from orders o where o.order_id=v.order_id and status='CONFIRMED')
			and exists(select from reservation o where o.order_id=v.order_id)
			and exists(select from payment o where o.order_id=v.order_id)
			and exists(select from store_order o where o.order_id=v.order_id)
			and exists(select from delivery o where o.order_id=v.order_id))`, "o"+run+"-%").Scan(&missing); err != nil {
		panic(err)
	}
	var all []float64
	for _, one := range latencies {
		all = append(all, one...)
	}
	sort.Float64s(all)
	quantile := func(p float64) float64 {
		if len(all) == 0 {
			return -1
		}
		return all[min(len(all)-1, int(p*float64(len(all))))]
	}
	fmt.Printf("orders_per_s=%.0f p50_ms=%.1f p99_ms=%.1f acknowledged=%d finished=%d failed=%d missing_steps=%d\n",
		float64(min(finished, acknowledged.Load()))/last.Sub(started).Seconds(), quantile(.5), quantile(.99),
		acknowledged.Load(), finished, failed.Load(), missing)
	if text := firstError.Load(); text != nil {
		fmt.Fprintln(os.Stderr, "an error:", text)
	}
}
