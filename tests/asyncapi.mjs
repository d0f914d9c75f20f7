// Prints, as JSON, the findings of AsyncAPI's own parser: `node asyncapi.mjs NODE_MODULES DOCUMENT`.
import { createRequire } from "node:module";

const [modules, document] = process.argv.slice(2);
const { Parser, fromFile } = createRequire(`${modules}/`)("@asyncapi/parser");
const { diagnostics } = await fromFile(new Parser(), document).parse();
console.log(JSON.stringify(diagnostics.map(({ code, severity, path, message }) => ({ code, severity, path, message }))));
