// Asks for the state once a second while the tab is visible, shows it, and tells steps of a heal.

const SILENCE = { reason: "The server does not answer.", probe: "unknown", database: "unknown" }
const byId = (id) => document.getElementById(id)
const seconds = () => ((performance.now() - heal.began) / 1000).toFixed(1)
// If the server hangs, a restart takes more than 10 s.
const isRestarting = () => heal?.isDue && performance.now() < heal.answered + 20_000
const steps = byId("steps")
const button = document.querySelector("button") // null if MAKE_UNHEALTHY is off
let heal = null // null while the server is healthy
let timer
// False if this tab may have missed something: before it was loaded, or while it was hidden.
let isWatching = !document.hidden && byId("health").textContent === "healthy"
let isOutdated = byId("database").textContent === "error" // since the accounts were read

async function poll() {
  isWatching &&= !document.hidden
  if (document.hidden) return
  // Chromium ends a request when a network of the machine changes. So a lost one is repeated.
  const state = ((await ask("state", "json")) ?? (await ask("state", "json")))?.body
  if (state) show(state.reason ? "unhealthy" : "healthy", textsOf(state))
  else show(isRestarting() ? "restarting" : "no answer", { ...SILENCE, note: "" })
  follow(state)
  if (state?.error) isOutdated = true
  if (state?.error === "" && isOutdated) await updateAccounts()
  clearTimeout(timer) // of another poll: the tab may have been hidden and shown meanwhile
  timer = setTimeout(poll, heal ? 250 : 1000)
}

// Returns null if there is no answer of this type.
async function ask(path, type, method = "GET") {
  try {
    const response = await fetch(path, { method, signal: AbortSignal.timeout(2000) })
    return { ok: response.ok, body: await response[type]() }
  } catch {
    return null
  }
}

function textsOf({ container, started, reason, probe_age, error }) {
  const probe = probe_age === null ? "none yet" : `${probe_age} s ago`
  const note = error && !reason ? `${error} The server is healthy, so nothing restarts it.` : error
  return { reason, probe, container, started, database: error ? "error" : "answers", note }
}

function show(health, texts) {
  for (const [id, text] of Object.entries({ health, ...texts })) {
    if (byId(id).textContent !== text) byId(id).textContent = text // this ends a selection
  }
  byId("health").className = health
  document.title = `${health} · Accounts`
  if (button) button.ariaDisabled = health !== "healthy"
}

// Tells the steps from the first answer that is not healthy to the first one that is.
function follow(state) {
  if (state?.reason !== "") {
    heal ??= beginHeal(state)
    tellSteps(state)
  } else if (heal) {
    const isSame = state.container === heal.container
    const who = isSame ? "healthy again" : `container ${state.container} answers`
    steps.append(heal.isTimed && isWatching ? `${who} after ${seconds()} s` : who)
    heal = null
  }
  isWatching = true
}

function beginHeal(state) {
  steps.textContent = ""
  const container = byId("container").textContent
  const probes = isWatching || !state ? 0 : state.failed_probes
  return { began: performance.now(), isTimed: isWatching, container, probes }
}

function tellSteps(state) {
  if (!state) return tell(isRestarting() ? "the healer restarts the server" : "no answer")
  heal.answered = performance.now()
  // Probe 3 comes 5 s after probe 2. The healer may act so soon that this tab misses probe 3.
  heal.isDue = state.failed_probes >= 3 || (state.failed_probes === 2 && state.probe_age >= 4)
  if (!heal.step) tell(heal.isTimed ? "made unhealthy" : "found unhealthy")
  while (heal.probes < Math.min(state.failed_probes, 3)) tell(`probe ${++heal.probes} failed`)
  if (state.failed_probes > 3) tell("nothing has restarted it yet")
}

function tell(step) {
  if (step !== heal.step) steps.append(`${seconds()} s\t${step}\n`)
  heal.step = step
}

async function updateAccounts() {
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
