// Tells a heal step by step, from the answers of the server. A reload keeps the steps of a heal
// that is not over.
// The page asks the server only during a heal, and only while the tab is visible.

const container = document.getElementById("container")
const started = document.getElementById("started")
const health = document.getElementById("health")
const list = document.getElementById("steps")
const form = document.querySelector("form") // null if MAKE_UNHEALTHY is off
const button = document.querySelector("button") // null, too

const PAUSE = 250 // milliseconds between two questions
const TIMEOUT = 3000 // milliseconds to wait for an answer

let heal = loadHeal() // null if there is none
let isPolling = false
// True if this tab has watched the server without a gap since an unhealthy answer. After a reload,
// or while the tab was hidden, the heal may have ended unseen, so its duration is unknown.
let isWatched = false
let isLeaving = false

async function pressButton(event) {
  event.preventDefault() // without JavaScript, the browser sends the form
  button.disabled = true
  list.replaceChildren()
  const refusal = await makeUnhealthy()
  if (refusal === null) {
    beginHeal("made unhealthy")
  } else {
    appendLine(refusal)
    button.disabled = false
  }
}

// Returns null, or why the server was not made unhealthy.
async function makeUnhealthy() {
  try {
    const signal = AbortSignal.timeout(TIMEOUT)
    const response = await fetch(form.action, { method: "POST", signal })
    return response.ok ? null : await response.text()
  } catch {
    return "no answer"
  }
}

function beginHeal(cause) {
  heal = { began: Date.now(), container: container.textContent, probes: 0, steps: [] }
  isWatched = true
  addStep(cause)
  poll()
}

async function poll() {
  if (isPolling || heal === null) return
  isPolling = true
  if (button) button.disabled = true
  while (heal !== null && !document.hidden) {
    const page = await fetchPage()
    followHeal(page)
    await sleep(PAUSE)
  }
  isWatched = false
  isPolling = false
}

// Returns the page as JSON, null if there is no answer.
async function fetchPage() {
  try {
    const headers = { Accept: "application/json" }
    const signal = AbortSignal.timeout(TIMEOUT)
    const response = await fetch("/", { headers, signal })
    return await response.json()
  } catch {
    return null
  }
}

function sleep(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds))
}

function followHeal(page) {
  if (page === null) {
    addNoAnswer()
  } else if (page.error) {
    addStep(page.error)
  } else if (page.healthy) {
    updateFacts(page)
    endHeal(page)
  } else {
    updateFacts(page)
    isWatched = true
    addProbes(page.failed_probes)
  }
}

function updateFacts(page) {
  container.textContent = page.container
  started.textContent = page.started
  health.textContent = page.health
  health.className = page.healthy ? "healthy" : "unhealthy"
}

function addNoAnswer() {
  if (isLeaving) return
  addStep(heal.probes < 3 ? "no answer" : "restarting (no answer)")
}

function addProbes(failed) {
  while (heal.probes < failed) {
    heal.probes += 1
    addStep(`probe ${heal.probes} failed`)
  }
}

// Adds a step and its time, unless the last step is the same.
function addStep(text) {
  if (heal.steps.at(-1)?.endsWith(`: ${text}`)) return
  const step = `${secondsSinceBegin()} s: ${text}`
  heal.steps.push(step)
  saveHeal()
  appendLine(step)
}

function appendLine(text) {
  const item = document.createElement("li")
  item.textContent = text
  list.append(item)
}

function secondsSinceBegin() {
  const milliseconds = Math.max(0, Date.now() - heal.began) // the clock may be set back
  return (milliseconds / 1000).toFixed(1)
}

function endHeal(page) {
  const isSame = page.container === heal.container
  const who = isSame ? "healthy again" : `container ${page.container} answers`
  // If the clock was set back, the duration is unknown, too.
  const isKnown = isWatched && Date.now() >= heal.began
  const when = isKnown ? ` after ${secondsSinceBegin()} s` : `, running since ${page.started}`
  appendLine(who + when)
  heal = null
  saveHeal()
  if (button) button.disabled = false
}

// The storage may be full, blocked by the browser, or written by another page of this address.

function saveHeal() {
  try {
    sessionStorage.setItem("heal", JSON.stringify(heal))
  } catch {
    // The steps are told all the same, but a reload forgets them.
  }
}

function loadHeal() {
  try {
    const stored = JSON.parse(sessionStorage.getItem("heal"))
    return isHeal(stored) ? stored : null
  } catch {
    return null
  }
}

// Throws for null; loadHeal catches this.
function isHeal(value) {
  return (
    Number.isFinite(value.began) &&
    Number.isInteger(value.probes) &&
    typeof value.container === "string" &&
    value.steps.every((step) => typeof step === "string")
  )
}

form?.addEventListener("submit", pressButton)
document.addEventListener("visibilitychange", poll)
addEventListener("beforeunload", () => {
  isLeaving = true // some browsers end the request under way at once: this is not "no answer"
})

if (heal !== null) {
  heal.steps.forEach(appendLine)
  poll()
} else if (health.className === "unhealthy") {
  beginHeal("found unhealthy")
}
