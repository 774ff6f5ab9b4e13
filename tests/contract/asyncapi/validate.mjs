// Validate an AsyncAPI document: node validate.mjs FOLDER DOCUMENT, where FOLDER holds node_modules.
// Prints one diagnostic per line; exits with 1 when there is one, or no document comes of it.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { resolve } from 'node:path';

const [folder, path] = process.argv.slice(2);
const { Parser } = createRequire(resolve(folder, 'package.json'))('@asyncapi/parser');
const { document, diagnostics } = await new Parser().parse(readFileSync(path, 'utf8'));
for (const { severity, code, path: where, message } of diagnostics) {
  console.log(`${severity} ${code} ${where.join('.')} ${message}`);
}
if (document) {
  console.log(`channels ${document.channels().length} operations ${document.operations().length}`);
}
process.exit(document && diagnostics.length === 0 ? 0 : 1);
