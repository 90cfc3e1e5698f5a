"""Speed and memory side by side with other libraries: `python -m benchmarks.<name> --help`. See docs/performance.md."""
