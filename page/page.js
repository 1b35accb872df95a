// The page shows the heal step by step, from what the server answers. It keeps the steps across a reload, and asks only
// while the tab is visible.
const form = document.querySelector("form"), button = document.querySelector("button")
const list = document.querySelector("ol")
const [container, started, health] = document.querySelectorAll("dd") // elements; those of `page` are texts
let heal = JSON.parse(sessionStorage.getItem("heal")), watching = false, leaving = false

const seconds = (at) => ((at - heal.began) / 1000).toFixed(1)

function show({ text, at }) {
  const item = document.createElement("li")
  item.textContent = `${seconds(at)} s: ${text}`
  list.append(item)
}

function observe(text) {
  if (heal.steps.at(-1)?.text === text) return
  heal.steps.push({ text, at: Date.now() })
  sessionStorage.setItem("heal", JSON.stringify(heal))
  show(heal.steps.at(-1))
}

function begin(text) {
  list.replaceChildren()
  heal = { began: Date.now(), container: container.textContent, probes: 0, steps: [] }
  observe(text)
  watch()
}

function end(page) {
  const how = page.container === heal.container ? "healthy again, healed" : `${page.container} answers, healthy,`
  observe(`${how} in ${seconds(Date.now())} s`)
  sessionStorage.removeItem("heal")
  heal = null
  container.textContent = page.container
  started.textContent = page.started
  health.textContent = page.health
  health.className = "healthy"
  if (button) button.disabled = false
}

async function look() {
  let response, page
  try {
    response = await fetch("/", { headers: { Accept: "application/json" }, signal: AbortSignal.timeout(3000) })
    page = await response.json()
  } catch {
    if (!leaving) observe(heal.probes < 3 ? "no answer" : "restarting (no answer)")
    return
  }
  if (!response.ok) return observe(page.error)
  if (page.healthy) return end(page)
  health.textContent = page.health
  health.className = "unhealthy"
  while (heal.probes < page.failed_probes) observe(`probe ${++heal.probes} failed`)
}

async function watch() {
  if (watching || !heal) return
  watching = true
  if (button) button.disabled = true
  while (heal && !document.hidden) {
    await look()
    await new Promise((resolve) => setTimeout(resolve, 250))
  }
  watching = false
}

form?.addEventListener("submit", async (event) => {
  event.preventDefault()
  const response = await fetch(form.action, { method: "POST" }).catch(() => null)
  if (response?.ok) begin("made unhealthy")
  else form.submit() // the browser shows what is wrong
})
document.addEventListener("visibilitychange", watch)
addEventListener("beforeunload", () => leaving = true) // leaving aborts the request: that is not "no answer"
if (heal) {
  heal.steps.forEach(show)
  watch()
} else if (health.className === "unhealthy") begin("found unhealthy")
