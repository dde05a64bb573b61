// OpenAI's client: prints what is asked of the server at URL, a line each.
const OpenAI = require("openai");

const messages = [{ role: "user", content: "Sort these numbers: 7 3 12 5." }];
const schema = {
  type: "object",
  properties: { total: { type: "integer", minimum: 0, maximum: 99 } },
  required: ["total"],
  additionalProperties: false,
};

(async () => {
  const client = new OpenAI({ baseURL: `${process.env.URL}/v1`, apiKey: "none" });
  const asked = { model: "demo", messages, max_tokens: 32 };
  console.log((await client.chat.completions.create(asked)).choices[0].message.content);
  console.log((await client.chat.completions.stream(asked).finalChatCompletion()).choices[0].message.content);
  const input = messages[0].content;
  const stream = client.responses.stream({ model: "demo", input, max_output_tokens: 32 });
  console.log((await stream.finalResponse()).output_text);
  const text = { format: { type: "json_schema", name: "sum", strict: true, schema } };
  const parsed = await client.responses.parse({ model: "demo", input, text, max_output_tokens: 60 });
  console.log(Number.isInteger(parsed.output_parsed.total));
})();
