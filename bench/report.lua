-- What __main__.py reads: the rate, p50 and p99 in ms, and the number of failures.
function done(summary, latency, requests)
  local errors = summary.errors
  io.stderr:write(string.format(
    "%f %f %f %d\n", summary.requests / summary.duration * 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
