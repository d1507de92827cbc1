"""What `scripts/bench` measures: ratios against the raw kernel calls and against peers, in one run."""
