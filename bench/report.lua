-- With a number, `wrk ... -- 1000`: each request is for another page of so many accounts.
function init(arguments)
  local accounts = tonumber(arguments[1])
  if accounts then
    request = function() return wrk.format(nil, "/?after=" .. math.random(0, accounts)) end
  end
end

-- What programs.py reads: requests, seconds, p50 and p99 in ms, failed requests, bytes.
function done(summary, latency, requests)
  local errors = summary.errors
  io.stderr:write(string.format(
    "%d %f %f %f %d %d\n", summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    summary.bytes))
end
