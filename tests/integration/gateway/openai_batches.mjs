// OpenAI's Node SDK: upload, upload in parts, batch, poll, list with paging, both files, cancel, a background response,
// and a webhook endpoint with an event that is unwrapped. Prints one JSON object.
import { once } from 'node:events';
import fs from 'node:fs';
import http from 'node:http';
import OpenAI, { toFile } from 'openai';

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY, maxRetries: 0 });
const input = process.argv[2];

const uploaded = await client.files.create({ file: fs.createReadStream(input), purpose: 'batch' });
const content = fs.readFileSync(input);
const upload = await client.uploads.create(
  { bytes: content.length, filename: 'input.jsonl', mime_type: 'application/jsonl', purpose: 'batch' },
);
const part = async (data) => (await client.uploads.parts.create(upload.id, { data: await toFile(data, 'part') })).id;
const part_ids = await Promise.all([part(content.subarray(0, 100)), part(content.subarray(100))]);
const joined = await client.uploads.complete(upload.id, { part_ids });
await client.files.delete(joined.file.id);
const created = await client.batches.create(
  { input_file_id: uploaded.id, endpoint: '/v1/chat/completions', completion_window: '24h', metadata: { from: 'node' } },
  { headers: { 'Idempotency-Key': 'node-1' } },
);
const repeated = await client.batches.create(
  { input_file_id: uploaded.id, endpoint: '/v1/chat/completions', completion_window: '24h', metadata: { from: 'node' } },
  { headers: { 'Idempotency-Key': 'node-1' } },
);
const ended = async (one, api) => {
  while (!['completed', 'failed', 'expired', 'cancelled'].includes(one.status)) {
    await new Promise((resolve) => setTimeout(resolve, 200));
    one = await api.retrieve(one.id);
  }
  return one;
};
const batch = await ended(created, client.batches);
const listed = [];
for await (const one of client.batches.list({ limit: 1 })) listed.push(one.id);
const files = [];
for await (const one of client.files.list({ limit: 1, order: 'asc' })) files.push(one.id);
const refused = await client.batches.cancel(batch.id).catch((error) => error.status);
const response = await ended(
  await client.responses.create({ model: 'echo', input: 'Hello', background: true }), client.responses,
);
const finished = await client.responses.cancel(response.id).catch((error) => error.status);

const posts = [];
const receiver = http.createServer((request, answer) => {
  let body = '';
  request.on('data', (piece) => { body += piece; });
  request.on('end', () => { posts.push({ body, headers: request.headers }); answer.end(); });
}).listen(0, '127.0.0.1');
await once(receiver, 'listening');
const url = `http://127.0.0.1:${receiver.address().port}/`;
const endpoint = await client.webhooks.create({ name: 'node', url, event_types: ['response.completed'] });
const other = await client.webhooks.create({ name: 'other', url, event_types: ['batch.failed'] });
const tested = await client.webhooks.test(endpoint.id, { event_type: 'response.completed' });
const unwrap = ({ body, headers }, secret) => client.webhooks.unwrap(body, headers, secret);
const event = await unwrap(posts[0], endpoint.signing_secret);
const forged = await unwrap(posts[0], other.signing_secret).catch((error) => error.constructor.name);
const rotated = await client.webhooks.rotateSecret(endpoint.id);
const deleted = await client.webhooks.delete(other.id);
const endpoints = [];
for await (const one of client.webhooks.list({ limit: 1 })) endpoints.push(one.id);
receiver.close();
const lines = async (id) => (await (await client.files.content(id)).text()).trim().split('\n').map((line) => JSON.parse(line));
console.log(JSON.stringify({
  uploaded, joined, repeated: repeated.id, batch, listed, files, refused, finished,
  text: response.output_text, endpoint: endpoint.id, endpoints, tested: tested.status_code, event: event.type, forged,
  rotated: rotated.signing_secret !== endpoint.signing_secret, deleted: deleted.deleted,
  output: await lines(batch.output_file_id), error: await lines(batch.error_file_id),
}));
