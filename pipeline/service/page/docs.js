// /openapi.json as something to read; the usual viewers fetch their code from elsewhere.

const main = document.getElementById("operations");
const document_ = await (await fetch("openapi.json")).json();

for (const [path, methods] of Object.entries(document_.paths)) {
  for (const [method, operation] of Object.entries(methods)) main.append(describe(path, method, operation));
}

function describe(path, method, operation) {
  const section = make("section");
  section.append(make("h2", "", operation.summary));
  section.append(make("p", "path", `${method.toUpperCase()} ${path}`));
  if (operation.description) section.append(make("p", "note", operation.description));
  const rows = (operation.parameters ?? []).map((parameter) => [
    parameter.name, `${parameter.in}${parameter.required ? ", required" : ""}`, describeSchema(parameter.schema), parameter.description ?? "",
  ]);
  for (const [type, content] of Object.entries(operation.requestBody?.content ?? {})) {
    for (const [name, schema] of Object.entries(resolve(content.schema).properties ?? {})) {
      rows.push([name, `body (${type})`, describeSchema(schema), schema.description ?? ""]);
    }
  }
  if (rows.length) section.append(makeTable("Takes", rows));
  const answer = operation.responses["200"]?.content?.["application/json"]?.schema;
  const fields = Object.entries(resolve(answer).properties ?? {});
  if (fields.length) {
    section.append(makeTable("Answers with", fields.map(([name, schema]) => [name, "", describeSchema(schema), schema.description ?? ""])));
  }
  return section;
}

function makeTable(caption, rows) {
  const box = make("div", "table");
  const table = make("table");
  table.append(make("caption", "", caption));
  for (const row of rows) {
    const line = make("tr");
    row.forEach((text, index) => line.append(make(index ? "td" : "th", "", text)));
    table.append(line);
  }
  box.append(table);
  return box;
}

function describeSchema(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.anyOf) return schema.anyOf.map(describeSchema).filter((name) => name !== "null").join(" or ");
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.type === "array") return `list of ${describeSchema(schema.items)}`;
  const limits = [
    schema.minimum !== undefined && `from ${schema.minimum}`, schema.maximum !== undefined && `to ${schema.maximum}`,
    schema.default !== undefined && `default ${JSON.stringify(schema.default)}`,
  ].filter(Boolean);
  return [schema.format ?? schema.type ?? "anything", ...limits].join(", ");
}

function resolve(schema) {
  return schema?.$ref ? document_.components.schemas[schema.$ref.split("/").at(-1)] : schema ?? {};
}

function make(name, className = "", text = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}
