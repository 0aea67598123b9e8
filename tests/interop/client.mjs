// Drives a broker with the official Connect client. Arguments: URL, descriptor in base64, "proto" or "json".
import assert from "node:assert/strict";
import { createFileRegistry, fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";

const [baseUrl, descriptor, format] = process.argv.slice(2);
const file = fromBinary(FileDescriptorProtoSchema, Buffer.from(descriptor, "base64"));
const service = createFileRegistry(file, () => undefined).getService("osqueue.v1.QueueService");
const transport = createConnectTransport({ baseUrl, httpVersion: "1.1", useBinaryFormat: format === "proto" });
const client = createClient(service, transport);
const payload = '{"n":123456789012345678901234567890}';

assert.equal((await client.claimJob({ workerId: "node" })).jobId, undefined);
const { jobId } = await client.submitJob({ type: "node", payload: Buffer.from(payload), maxAttempts: 2 });
const job = await client.claimJob({ workerId: "node", types: ["node"] });
assert.equal(job.jobId, jobId);
assert.equal(job.type, "node");
assert.equal(job.attempt, 1);
assert.equal(Buffer.from(job.payload).toString(), payload);
await client.heartbeat({ jobId, workerId: "node" });
const { jobs, total } = await client.listJobs({});
assert.equal(total, 1);
assert.equal(jobs[0].id, jobId);
assert.equal(jobs[0].workerId, "node");
assert.equal(Buffer.from(jobs[0].payload).toString(), payload);
assert.equal(typeof jobs[0].createdAt, "bigint");
assert.ok(jobs[0].createdAt > 0n);
const before = await client.getStats({});
await client.completeJob({ jobId, workerId: "node" });
const stats = await client.getStats({});
assert.equal(stats.total, 0);
assert.equal(stats.completedTotal, before.completedTotal + 1);
assert.ok(stats.features.includes("fail"));

const bad = await client.submitJob({ type: "bad", payload: Buffer.from("1") });
await client.claimJob({ workerId: "node" });
await client.failJob({
  jobId: bad.jobId, workerId: "node", error: { type: "Error", message: "no" }, retry: false,
});
const dead = await client.listDead({ limit: 1 });
assert.equal(dead.jobs[0].id, bad.jobId);
assert.equal(dead.jobs[0].error.message, "no");
await client.requeueDead({ jobId: bad.jobId });
await client.claimJob({ workerId: "node" });
await client.completeJob({ jobId: bad.jobId, workerId: "node" });

async function refused(call, code, tag) {
  const error = await call.then(() => assert.fail("not refused"), ConnectError.from);
  assert.equal(error.code, code);
  assert.equal(error.metadata.get("osqueue-error"), tag);
  const [detail] = error.details;
  assert.equal(detail.type, "google.protobuf.Struct");
  assert.equal(detail.debug._tag, tag);
  return detail.debug;
}
await refused(client.heartbeat({ jobId: "no-such", workerId: "node" }), Code.NotFound, "JobNotFoundError");
const fields = await refused(client.claimJob({}), Code.InvalidArgument, "BrokerProtocolError");
assert.equal(fields.field, "workerId");
await refused(
  client.submitJob({ type: "x", payload: Buffer.from("{") }), Code.InvalidArgument, "BrokerProtocolError",
);
console.log(`passed ${format}`);
