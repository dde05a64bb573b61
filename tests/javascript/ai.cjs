// Vercel's AI SDK, with chat completions and with responses: prints what is asked of the server at URL, a line each.
const { createOpenAI } = require("@ai-sdk/openai");
const { createOpenAICompatible } = require("@ai-sdk/openai-compatible");
const { generateObject, generateText, streamText, tool } = require("ai");
const { z } = require("zod");

const baseURL = `${process.env.URL}/v1`;
const prompt = "Sort these numbers: 7 3 12 5.";
const schema = z.object({ total: z.number().int().min(0).max(99) });
const look = tool({
  description: "Looks.",
  inputSchema: z.object({ place: z.enum(["Rome", "Oslo"]) }),
  execute: async ({ place }) => `sun in ${place}`,
});

(async () => {
  const settings = { name: "unmask", baseURL, apiKey: "none" };
  const compatible = createOpenAICompatible({ ...settings, includeUsage: true, supportsStructuredOutputs: true });
  for (const model of [compatible("demo"), createOpenAI(settings)("demo")]) {
    console.log((await generateText({ model, prompt, maxOutputTokens: 32 })).text);
    const streamed = streamText({ model, prompt, maxOutputTokens: 32 });
    let text = "";
    for await (const part of streamed.textStream) text += part;
    console.log(text);
    console.log((await streamed.usage).outputTokens > 0);
    const { object } = await generateObject({ model, schema, prompt, maxOutputTokens: 60 });
    console.log(Number.isInteger(object.total));
    const called = await generateText({ model, prompt, tools: { look }, toolChoice: "required", maxOutputTokens: 150 });
    console.log(called.toolResults[0].output.startsWith("sun in "));
  }
})();
