package ordertest
import ("testing";"time")
func TestDbg(t *testing.T) {
	for _, c := range tests[3:4] {
		b := time.Now()
		err := c.run(suite{factory: raftFactory, mistakes: mistakes{dropState: true}, effort: 1})
		t.Logf("%s %v %.300v", c.name, time.Since(b), err)
	}
}
