// amqp091-go (Debian: golang-github-rabbitmq-amqp091-go-dev), same command line and report as the
// other peers.  Goroutines stand in for threads.
package main

import (
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const me = "amqp091-go"
const rpcQ = "compare.rpc"

type conf struct {
	job, url, queue                                              string
	messages, size, prefetch, batch, threads, inflight, warmup int
}

func ck(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func statusKB(key string) int {
	b, _ := os.ReadFile("/proc/self/status")
	for _, l := range strings.Split(string(b), "\n") {
		if strings.HasPrefix(l, key) {
			v, _ := strconv.Atoi(strings.Fields(l)[1])
			return v
		}
	}
	return 0
}

type run struct {
	c   *conf
	ru  syscall.Rusage
	rss int
	t   time.Time
}

func start(c *conf) *run {
	r := &run{c: c, rss: statusKB("VmRSS:")}
	syscall.Getrusage(syscall.RUSAGE_SELF, &r.ru)
	r.t = time.Now()
	return r
}

func sec(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }

func (r *run) finish(m, bytes int, lat []int64) {
	wall := time.Since(r.t).Seconds()
	var e syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &e)
	u, s := sec(e.Utime)-sec(r.ru.Utime), sec(e.Stime)-sec(r.ru.Stime)
	fmt.Printf(`{"peer":"%s","job":"%s","messages":%d,"bytes":%d,"wall_s":%.6f,"user_s":%.6f,"sys_s":%.6f,"cpu_s":%.6f,"max_rss_kb":%d,"rss_start_kb":%d,"rss_end_kb":%d,"nvcsw":%d,"nivcsw":%d,"minflt":%d`,
		me, r.c.job, m, bytes, wall, u, s, u+s, statusKB("VmHWM:"), r.rss, statusKB("VmRSS:"), e.Nvcsw-r.ru.Nvcsw, e.Nivcsw-r.ru.Nivcsw, e.Minflt-r.ru.Minflt)
	if len(lat) > 0 {
		sort.Slice(lat, func(i, j int) bool { return lat[i] < lat[j] })
		q := func(p float64) float64 { return float64(lat[int(float64(len(lat)-1)*p)]) / 1e3 }
		var sum int64
		for _, v := range lat {
			sum += v
		}
		fmt.Printf(`,"p50_us":%.3f,"p90_us":%.3f,"p99_us":%.3f,"p999_us":%.3f,"mean_us":%.3f`, q(.5), q(.9), q(.99), q(.999), float64(sum)/float64(len(lat))/1e3)
	}
	fmt.Println("}")
}

func dial(c *conf) *amqp.Connection {
	x, err := amqp.Dial(c.url)
	ck(err)
	return x
}

func channel(x *amqp.Connection) *amqp.Channel {
	ch, err := x.Channel()
	ck(err)
	return ch
}

func setup(c *conf) (*amqp.Connection, *amqp.Channel) {
	x := dial(c)
	ch := channel(x)
	_, err := ch.QueueDeclare(rpcQ, false, false, false, false, nil)
	ck(err)
	return x, ch
}

func passive(ch *amqp.Channel) {
	_, err := ch.QueueDeclarePassive(rpcQ, false, false, false, false, nil)
	ck(err)
}

func main() {
	c := &conf{job: os.Args[1], url: "amqp://guest:guest@127.0.0.1:5672/%2f", messages: 10000, size: 16, prefetch: 1000, batch: 1, threads: 16, inflight: 1000}
	for i := 2; i+1 < len(os.Args); i += 2 {
		v := os.Args[i+1]
		num := func() int { x, err := strconv.Atoi(v); ck(err); return x }
		switch os.Args[i] {
		case "--url":
			c.url = v
		case "--queue":
			c.queue = v
		case "--messages":
			c.messages = num()
		case "--size":
			c.size = num()
		case "--prefetch":
			c.prefetch = num()
		case "--batch":
			c.batch = num()
		case "--threads":
			c.threads = num()
		case "--inflight":
			c.inflight = num()
		case "--warmup":
			c.warmup = num()
		}
	}
	n := c.messages
	key, src := "compare.drop", fmt.Sprintf("src.%d.%d", n, c.size)
	if c.queue != "" {
		key, src = c.queue, c.queue
	}
	mkbody := func() []byte {
		b := make([]byte, c.size)
		for i := range b {
			b[i] = byte(i & 0x7f)
		}
		return b
	}
	switch c.job {
	case "publish":
		x, ch := setup(c)
		b := mkbody()
		r := start(c)
		for i := 0; i < n; i++ {
			ck(ch.Publish("", key, false, false, amqp.Publishing{Body: b}))
		}
		passive(ch)
		r.finish(n, n*c.size, nil)
		x.Close()
	case "confirm-sync", "confirm-window":
		x, ch := setup(c)
		ck(ch.Confirm(false))
		b := mkbody()
		w := c.inflight
		if c.job == "confirm-sync" {
			w = 1
		}
		conf := ch.NotifyPublish(make(chan amqp.Confirmation, w))
		var lat []int64
		r := start(c)
		sent := 0
		for done := 0; done < n; {
			if w == 1 {
				t := time.Now()
				ck(ch.Publish("", key, false, false, amqp.Publishing{Body: b}))
				<-conf
				done++
				lat = append(lat, int64(time.Since(t)))
			} else if sent < n && sent-done < w {
				ck(ch.Publish("", key, false, false, amqp.Publishing{Body: b}))
				sent++
			} else {
				<-conf
				done++
			drain:
				for {
					select {
					case <-conf:
						done++
					default:
						break drain
					}
				}
			}
		}
		r.finish(n, n*c.size, lat)
		x.Close()
	case "consume", "consume-ack":
		x, ch := setup(c)
		noack := c.job == "consume"
		if !noack {
			ck(ch.Qos(c.prefetch, 0, false))
		}
		r := start(c)
		d, err := ch.Consume(src, "", noack, false, false, false, nil)
		ck(err)
		total, first := 0, 0
		for got := 1; got <= n; got++ {
			m := <-d
			total += len(m.Body)
			first += int(m.Body[0])
			if !noack {
				if c.batch <= 1 {
					ck(m.Ack(false))
				} else if got%c.batch == 0 || got == n {
					ck(m.Ack(true))
				}
			}
		}
		if !noack {
			passive(ch)
		}
		if total != n*c.size || first == 1 {
			ck(fmt.Errorf("short"))
		}
		r.finish(n, total, nil)
		x.Close()
	case "rpc":
		x, ch := setup(c)
		lat := make([]int64, n)
		r := start(c)
		for i := range lat {
			t := time.Now()
			passive(ch)
			lat[i] = int64(time.Since(t))
		}
		r.finish(n, 0, lat)
		x.Close()
	case "mt-publish", "mt-rpc":
		x, _ := setup(c)
		per := n / c.threads
		rpc := c.job == "mt-rpc"
		chans := make([]*amqp.Channel, c.threads)
		lats := make([][]int64, c.threads)
		for i := range chans {
			chans[i] = channel(x)
		}
		var wg sync.WaitGroup
		r := start(c)
		for i := range chans {
			wg.Add(1)
			go func(i int) {
				defer wg.Done()
				ch, b := chans[i], mkbody()
				for k := 0; k < per; k++ {
					if rpc {
						t := time.Now()
						passive(ch)
						lats[i] = append(lats[i], int64(time.Since(t)))
					} else {
						ck(ch.Publish("", key, false, false, amqp.Publishing{Body: b}))
					}
				}
				if !rpc {
					passive(ch)
				}
			}(i)
		}
		wg.Wait()
		var all []int64
		for _, l := range lats {
			all = append(all, l...)
		}
		bytes := per * c.threads * c.size
		if rpc {
			bytes = 0
		}
		r.finish(per*c.threads, bytes, all)
		x.Close()
	case "pingpong":
		open := func(q string) (*amqp.Connection, *amqp.Channel, <-chan amqp.Delivery) {
			x := dial(c)
			ch := channel(x)
			_, err := ch.QueueDeclare(q, false, true, false, false, nil)
			ck(err)
			d, err := ch.Consume(q, "", true, false, false, false, nil)
			ck(err)
			return x, ch, d
		}
		x1, ch1, d1 := open("loop.pong")
		x2, ch2, d2 := open("loop.ping")
		b := mkbody()
		total := n + c.warmup
		fin := make(chan bool)
		go func() {
			for i := 0; i < total; i++ {
				<-d2
				ck(ch2.Publish("", "loop.pong", false, false, amqp.Publishing{Body: b}))
			}
			x2.Close()
			fin <- true
		}()
		var lat []int64
		var r *run
		for i := 0; i < total; i++ {
			if i == c.warmup {
				r = start(c)
			}
			t := time.Now()
			ck(ch1.Publish("", "loop.ping", false, false, amqp.Publishing{Body: b}))
			<-d1
			if i >= c.warmup {
				lat = append(lat, int64(time.Since(t)))
			}
		}
		r.finish(n, n*c.size, lat)
		<-fin
		x1.Close()
	case "churn":
		lat := make([]int64, n)
		r := start(c)
		for i := range lat {
			t := time.Now()
			x := dial(c)
			ck(channel(x).Close())
			ck(x.Close())
			lat[i] = int64(time.Since(t))
		}
		r.finish(n, 0, lat)
	case "idle-channels":
		x, _ := setup(c)
		keep := make([]*amqp.Channel, n)
		r := start(c)
		for i := range keep {
			keep[i] = channel(x)
		}
		r.finish(len(keep), 0, nil)
		x.Close()
	case "idle-consumers":
		x, ch := setup(c)
		_, err := ch.QueueDeclare("idle.q", false, true, false, false, nil)
		ck(err)
		keep := make([]<-chan amqp.Delivery, n)
		r := start(c)
		for i := range keep {
			keep[i], err = ch.Consume("idle.q", "", true, false, false, false, nil)
			ck(err)
		}
		r.finish(len(keep), 0, nil)
		x.Close()
	default:
		fmt.Fprintln(os.Stderr, "unsupported: job")
		os.Exit(3)
	}
}
