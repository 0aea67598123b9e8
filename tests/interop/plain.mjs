// Drives a broker with what Node has built in. Arguments: URL, "rest" (fetch) or "ws" (WebSocket).
import assert from "node:assert/strict";

const [baseUrl, transport] = process.argv.slice(2);

async function restCalls() {
  async function call(method, path, body) {
    const response = await fetch(`${baseUrl}${path}`, {
      method, signal: AbortSignal.timeout(10_000),
      ...(body && { headers: { "content-type": "application/json" }, body: JSON.stringify(body) }),
    });
    const text = await response.text();
    const answer = text === "" ? {} : JSON.parse(text);
    if (!response.ok) throw Object.assign(new Error(answer.message), { tag: answer._tag });
    return answer;
  }
  return {
    submitJob: (params) => call("POST", "/v1/jobs", params),
    claimJob: (params) => call("POST", "/v1/jobs/claim", params),
    heartbeat: ({ jobId, ...params }) => call("POST", `/v1/jobs/${jobId}/heartbeat`, params),
    completeJob: ({ jobId, ...params }) => call("POST", `/v1/jobs/${jobId}/complete`, params),
    getStats: () => call("GET", "/v1/stats"),
    listJobs: () => call("GET", "/v1/jobs"),
    close: () => {},
  };
}

async function wsCalls() {
  const socket = new WebSocket(`${baseUrl.replace("http", "ws")}/v1/ws`);
  const waiting = new Map();
  socket.onmessage = ({ data }) => {
    const { id, ok, result, error } = JSON.parse(data);
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (ok) resolve(result);
    else reject(Object.assign(new Error(error.message), { tag: error._tag }));
  };
  await new Promise((resolve, reject) => {
    socket.onopen = resolve;
    socket.onerror = reject;
  });
  let last = 0;
  const calls = { close: () => socket.close() };
  for (const method of ["submitJob", "claimJob", "heartbeat", "completeJob", "getStats", "listJobs"]) {
    calls[method] = (params) => new Promise((resolve, reject) => {
      waiting.set(++last, { resolve, reject });
      socket.send(JSON.stringify({ id: last, method, params }));
    });
  }
  return calls;
}

const deadline = setTimeout(() => assert.fail("it took more than 30 s"), 30_000);
const queue = await (transport === "ws" ? wsCalls() : restCalls());
const payload = { to: "user@example.com", text: "Grüße", list: [1, null, true] };

assert.deepEqual(await queue.claimJob({ workerId: "node" }), {});
const { jobId } = await queue.submitJob({ type: "node", payload, maxAttempts: 2 });
const job = await queue.claimJob({ workerId: "node", types: ["node"] });
assert.equal(job.jobId, jobId);
assert.equal(job.type, "node");
assert.deepEqual(job.payload, payload);
assert.deepEqual(await queue.heartbeat({ jobId, workerId: "node" }), {});
const { jobs } = await queue.listJobs();
assert.equal(jobs[0].id, jobId);
assert.equal(jobs[0].workerId, "node");
assert.equal((await queue.getStats()).inProgress, 1);
assert.deepEqual(await queue.completeJob({ jobId, workerId: "node" }), {});
const stats = await queue.getStats();
assert.deepEqual([stats.total, stats.inProgress, stats.completedTotal], [0, 0, 1]);
await assert.rejects(queue.completeJob({ jobId, workerId: "node" }), { tag: "JobNotFoundError" });
await assert.rejects(queue.claimJob({}), { tag: "BrokerProtocolError", message: /workerId/ });
const ids = await Promise.all([1, 2, 3].map((n) => queue.submitJob({ type: "many", payload: n })));
assert.equal(new Set(ids.map((answer) => answer.jobId)).size, 3);
queue.close();
clearTimeout(deadline);
console.log(`passed ${transport}`);
