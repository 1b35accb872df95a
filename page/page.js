// Shows a heal step by step, from the answers of the server. The steps survive a reload.
// The page asks the server only during a heal, and only while the tab is visible.

const byId = (id) => document.getElementById(id)
const form = document.querySelector("form")
const button = document.querySelector("button")

let heal = loadHeal() // null if there is none
let isPolling = false
let isLeaving = false

// What the session storage holds if it works, and if another page has not written to it.
function loadHeal() {
  try {
    const stored = JSON.parse(sessionStorage.getItem("heal"))
    stored.steps.forEach(formatStep)
    return stored
  } catch {
    return null
  }
}

function saveHeal() {
  try {
    sessionStorage.setItem("heal", JSON.stringify(heal))
  } catch {
    // Storage is full or blocked: the steps are shown, but do not survive a reload.
  }
}

function formatStep({ seconds, text }) {
  return `${seconds.toFixed(1)} s: ${text}`
}

function showStep(step) {
  const item = document.createElement("li")
  item.textContent = formatStep(step)
  byId("steps").append(item)
}

function secondsSinceBegin() {
  return Math.max(0, (Date.now() - heal.began) / 1000) // the clock may be set back
}

function addStep(text) {
  if (heal.steps.at(-1)?.text === text) return
  const step = { seconds: secondsSinceBegin(), text }
  heal.steps.push(step)
  saveHeal()
  showStep(step)
}

function beginHeal(text) {
  byId("steps").replaceChildren()
  heal = { began: Date.now(), container: byId("container").textContent, probes: 0, steps: [] }
  addStep(text)
  poll()
}

function endHeal(page) {
  const same = page.container === heal.container
  const who = same ? "healthy again, healed" : `${page.container} answers, healthy,`
  const when = heal.wasHidden
    ? `while this tab was hidden: running since ${page.started}`
    : `in ${secondsSinceBegin().toFixed(1)} s`
  addStep(`${who} ${when}`)
  sessionStorage.removeItem("heal")
  heal = null
  byId("container").textContent = page.container
  byId("started").textContent = page.started
  showHealth(page)
  if (button) button.disabled = false
}

function showHealth(page) {
  byId("health").textContent = page.health
  byId("health").className = page.healthy ? "healthy" : "unhealthy"
}

async function askServer() {
  let response, page
  try {
    const signal = AbortSignal.timeout(3000)
    response = await fetch("/", { headers: { Accept: "application/json" }, signal })
    page = await response.json()
  } catch {
    if (!isLeaving) addStep(heal.probes < 3 ? "no answer" : "restarting (no answer)")
    return
  }
  if (!response.ok) return addStep(page.error)
  if (page.healthy) return endHeal(page)
  heal.wasHidden = false
  showHealth(page)
  while (heal.probes < page.failed_probes) {
    heal.probes += 1
    addStep(`probe ${heal.probes} failed`)
  }
}

async function poll() {
  if (isPolling || !heal) return
  isPolling = true
  if (button) button.disabled = true
  while (heal && !document.hidden) {
    await askServer()
    await new Promise((resolve) => setTimeout(resolve, 250))
  }
  if (heal) heal.wasHidden = true
  isPolling = false
}

async function pressButton(event) {
  event.preventDefault() // without JavaScript, the browser sends the form
  byId("steps").replaceChildren()
  try {
    const response = await fetch(form.action, { method: "POST" })
    if (response.ok) return beginHeal("made unhealthy")
    byId("steps").textContent = await response.text()
  } catch {
    byId("steps").textContent = "no answer"
  }
}

form?.addEventListener("submit", pressButton)
document.addEventListener("visibilitychange", poll)
addEventListener("beforeunload", () => {
  isLeaving = true // leaving aborts the request; this is not "no answer"
})

if (heal) {
  heal.steps.forEach(showStep)
  poll()
} else if (byId("health").className === "unhealthy") {
  beginHeal("found unhealthy")
}
