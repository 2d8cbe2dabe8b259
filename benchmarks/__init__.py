"""Published numbers, reproduced: `make bench` prints them and rewrites book/reproduced.md."""
