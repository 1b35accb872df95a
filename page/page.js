// While its tab is visible, the page asks for the state once a second, and shows it. While the
// server is not healthy, the page asks more often, and tells the steps of the heal.

const TIMEOUT = 2000 // milliseconds to wait for an answer
const SILENCE = {
  reason: "The server does not answer.",
  probe: "unknown",
  database: "unknown",
  note: "",
}

const steps = byId("steps")
const button = document.querySelector("button") // null if MAKE_UNHEALTHY is off
let heal = null // the heal that the steps show; null while the server is healthy
let timer
// False if the tab may have missed something, before it was loaded or while it was hidden. Then it
// does not tell how long a heal took.
let hasSeenAll = !document.hidden && byId("health").textContent === "healthy"
let isOutdated = byId("database").textContent === "error" // the accounts are to be read again

function byId(id) {
  return document.getElementById(id)
}

async function poll() {
  if (document.hidden) {
    hasSeenAll = false
    return
  }
  // Chromium ends a request when a network of the machine changes. So a lost one is repeated.
  const answer = (await ask("state", "json")) ?? (await ask("state", "json"))
  const state = answer?.ok ? answer.body : null // null: no answer
  showState(state)
  followHeal(state)
  hasSeenAll = true
  if (state !== null) await followDatabase(state.error)
  clearTimeout(timer) // another poll may have set one, if the tab was hidden and shown meanwhile
  timer = setTimeout(poll, heal ? 100 : 1000)
}

// Returns null if there is no answer of this type.
async function ask(path, type, method = "GET") {
  try {
    const response = await fetch(path, { method, signal: AbortSignal.timeout(TIMEOUT) })
    return { ok: response.ok, body: await response[type]() }
  } catch {
    return null
  }
}

function showState(state) {
  const health = nameHealth(state)
  const facts = state === null ? SILENCE : factsOf(state)
  for (const [id, text] of Object.entries({ health, ...facts })) {
    if (byId(id).textContent !== text) byId(id).textContent = text // a write ends a selection
  }
  byId("facts").className = health
  document.title = `${health} · Accounts`
  if (button) button.ariaDisabled = health !== "healthy"
}

function nameHealth(state) {
  if (state === null) return isRestarting() ? "restarting" : "no answer"
  return state.reason ? "unhealthy" : "healthy"
}

function isRestarting() {
  // If the server hangs, a restart takes more than 10 s.
  return heal !== null && heal.restartMayCome && performance.now() < heal.answered + 20_000
}

function factsOf({ container, started, reason, probe_age, error }) {
  const probe = probe_age === null ? "none yet" : `${probe_age} s ago`
  const note = error && !reason ? `${error} The server is healthy, so nothing restarts it.` : error
  return { container, started, reason, probe, database: error ? "error" : "answers", note }
}

// A heal begins with the first answer that is not healthy, and ends with the first one that is.
function followHeal(state) {
  const isHealthy = state !== null && state.reason === ""
  if (!isHealthy && heal === null) beginHeal(state)
  if (!isHealthy) tellSteps(state)
  if (isHealthy && heal !== null) endHeal(state)
}

function beginHeal(state) {
  steps.textContent = ""
  heal = { began: performance.now(), isTimed: hasSeenAll, restartMayCome: false, step: "" }
  heal.container = byId("container").textContent
  heal.toldProbes = hasSeenAll || state === null ? 0 : state.failed_probes
}

function tellSteps(state) {
  if (state === null) {
    tell(isRestarting() ? "the healer restarts the server" : "no answer")
    return
  }
  heal.answered = performance.now()
  // Probe 3 comes 5 s after probe 2. The healer may act so soon after probe 3 that this tab misses
  // that probe. So two failures and almost 5 s count, too.
  heal.restartMayCome = state.failed_probes >= 3 ||
    (state.failed_probes === 2 && state.probe_age >= 4)
  if (heal.step === "") tell(heal.isTimed ? "made unhealthy" : "found unhealthy")
  while (heal.toldProbes < Math.min(state.failed_probes, 3)) {
    heal.toldProbes += 1
    tell(`probe ${heal.toldProbes} failed`)
  }
  if (state.failed_probes > 3) tell("nothing has restarted it yet")
}

function tell(step) {
  if (step !== heal.step) steps.append(`${secondsOfHeal()} s\t${step}\n`)
  heal.step = step
}

function secondsOfHeal() {
  return ((performance.now() - heal.began) / 1000).toFixed(1)
}

function endHeal(state) {
  const isSame = state.container === heal.container
  const who = isSame ? "healthy again" : `container ${state.container} answers`
  steps.append(heal.isTimed && hasSeenAll ? `${who} after ${secondsOfHeal()} s` : who)
  heal = null
}

// When the database is back, the page reads the accounts again.
async function followDatabase(error) {
  if (error) isOutdated = true
  if (error || !isOutdated) return
  const answer = await ask(location.href, "text")
  if (!answer?.ok) return
  const page = new DOMParser().parseFromString(answer.body, "text/html")
  byId("accounts").replaceWith(page.getElementById("accounts"))
  isOutdated = false
}

async function pressButton(event) {
  event.preventDefault() // without JavaScript, the browser sends the form
  if (button.ariaDisabled === "true") return
  button.ariaDisabled = "true"
  const answer = await ask("make-unhealthy", "text", "POST")
  if (!answer?.ok) steps.textContent = answer?.body ?? "no answer"
  await poll()
}

button?.form.addEventListener("submit", pressButton)
document.addEventListener("visibilitychange", poll)
poll()
