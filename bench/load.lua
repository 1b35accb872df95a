-- wrk URL -- ACCOUNTS: each request is for any page of so many accounts.
function init(arguments)
  local accounts = tonumber(arguments[1])
  if accounts then
    request = function()
      return wrk.format(nil, "/?after=" .. math.random(0, accounts))
    end
  end
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format(
    '{"requests": %d, "rate": %f, "p50": %f, "p99": %f, "failed": %d}\n', summary.requests,
    summary.requests / summary.duration * 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, failed
  ))
end
