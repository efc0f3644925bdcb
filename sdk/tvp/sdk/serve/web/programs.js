// The same request as text, for a shell and for Python. The key is named, and never written.

const KEY = "TVP_KEY";

/** A request for curl. Texts go as they are: `--form-string` reads no file, whatever they begin with. */
export function curl(url, name, fields, hasKey) {
  const lines = [`curl -s ${quoted(url)}`];
  if (hasKey) lines.push(`-H "Authorization: Bearer $${KEY}"`);
  lines.push(`-F ${quoted(`image=@"${name.replace(/["\\]/g, "\\$&")}"`)}`);
  for (const [field, value] of Object.entries(fields)) lines.push(`--form-string ${quoted(`${field}=${value}`)}`);
  return lines.join(" \\\n  ");
}

/** A request in Python's standard library. A text in JSON is one in Python. */
export function python(url, name, fields, hasKey) {
  const rows = Object.entries(fields).map(([field, value]) => `    ${JSON.stringify(field)}: ${JSON.stringify(value)},`);
  const headers = ['"Content-Type": "application/json"'];
  if (hasKey) headers.push(`"Authorization": f"Bearer {os.environ['${KEY}']}"`);
  return `import base64
import json
${hasKey ? "import os\n" : ""}from pathlib import Path
from urllib.request import Request, urlopen

body = {
    "image": base64.b64encode(Path(${JSON.stringify(name)}).read_bytes()).decode(),
${rows.join("\n")}
}
headers = {${headers.join(", ")}}
request = Request(${JSON.stringify(url)}, json.dumps(body).encode(), headers)
with urlopen(request) as reply:
    print(json.load(reply)["text"])`;
}

function quoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
