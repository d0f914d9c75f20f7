// OpenAI's Node SDK: upload, upload in parts, batch, poll, list with paging, both files, cancel. Prints one JSON object.
import fs from 'node:fs';
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
let batch = created;
while (!['completed', 'failed', 'expired', 'cancelled'].includes(batch.status)) {
  await new Promise((resolve) => setTimeout(resolve, 200));
  batch = await client.batches.retrieve(batch.id);
}
const listed = [];
for await (const one of client.batches.list({ limit: 1 })) listed.push(one.id);
const files = [];
for await (const one of client.files.list({ limit: 1, order: 'asc' })) files.push(one.id);
const refused = await client.batches.cancel(batch.id).catch((error) => error.status);
const lines = async (id) => (await (await client.files.content(id)).text()).trim().split('\n').map((line) => JSON.parse(line));
console.log(JSON.stringify({
  uploaded, joined, repeated: repeated.id, batch, listed, files, refused,
  output: await lines(batch.output_file_id), error: await lines(batch.error_file_id),
}));
