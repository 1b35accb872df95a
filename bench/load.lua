-- With a number, `wrk ... -- 1000`: each request is for any page of so many accounts.
function init(arguments)
  local accounts = tonumber(arguments[1])
  if accounts then
    request = function()
      return wrk.format(nil, "/?after=" .. math.random(0, accounts))
    end
  end
end

-- What stack.py reads. wrk counts in microseconds.
function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.stderr:write(string.format(
    '{"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "failed": %d}', summary.requests,
    summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, failed
  ))
end
