"""One package per table or figure, timings in `benchmarks`, and in `common` what several of them share."""
