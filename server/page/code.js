// The page's request as others would send it: a line of curl, a script with OpenAI's client.

const SDK = ["model", "messages", "prompt", "echo", "max_tokens", "temperature", "seed", "stream", "stream_options"];

/** A command for a shell. The key stays in the environment. */
export function curl(url, body, hasKey) {
  const json = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  const key = hasKey ? `  -H "authorization: Bearer $UNMASK_API_KEY" \\\n` : "";
  return `curl -N ${url} \\\n  -H 'content-type: application/json' \\\n${key}  -d '${json}'`;
}

/** A script for Python with OpenAI's client. */
export function python(url, body, model) {
  const isChat = "messages" in body;
  const fields = Object.entries({ model, ...body });
  const extra = fields.filter(([name]) => !SDK.includes(name));
  const lines = fields.filter(([name]) => SDK.includes(name)).map(([name, value]) => `    ${name}=${literal(value)},`);
  const base = url.slice(0, url.indexOf("/v1/") + 3);
  return [
    "import os",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(base)}, api_key=os.environ.get("UNMASK_API_KEY", "none"))`,
    `stream = client.${isChat ? "chat.completions" : "completions"}.create(`,
    ...lines,
    `    extra_body=${literal(Object.fromEntries(extra))},`,
    ")",
    "for chunk in stream:",
    "    for choice in chunk.choices:",
    `        print(choice.${isChat ? "delta.content or \"\"" : "text"}, end="", flush=True)`,
  ].join("\n");
}

/** JSON as Python writes it. Texts are the same in both. */
function literal(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, inner]) => `${JSON.stringify(name)}: ${literal(inner)}`).join(", ")}}`;
}
