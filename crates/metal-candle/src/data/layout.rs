//! Row formats: which columns a row has, and their meaning.
//!
//! `ShareGPT` and Alpaca rows become conversations, so that every model's own chat template renders them. A column that
//! is null (or NaN, as pandas writes it) counts as absent: exports of tables write every column in every row.

use serde_json::{Map, Value};

use super::{RowContent, RowFormat};
use crate::text::python_json::{Columns, is_missing};
use crate::text::{ChatMessage, json_kind, unquote};

/// The columns that any format reads.
pub(super) const COLUMNS: [&str; 18] = [
    "messages",
    "conversations",
    "conversation",
    "prompt",
    "completion",
    "text",
    "instruction",
    "input",
    "context",
    "output",
    "response",
    "system",
    "history",
    "tools",
    "functions",
    "chosen",
    "rejected",
    "label",
];
const EXPECTED: &str = "expected a row with \"messages\", \"conversations\", \"instruction\" and \"output\", \"prompt\" and \
    \"completion\", or \"text\"";

/// The content of a row, and for an Alpaca row the offset of its input in its last question.
pub(super) type ParsedRow = (RowContent, Option<usize>);

/// The format of a row by its columns; an error for a row that cannot be an example.
pub(super) fn detect(columns: &Columns) -> Result<RowFormat, String> {
    let has = |name: &str| is_present(&columns.values, name);
    if has("messages") {
        Ok(RowFormat::Messages)
    } else if has("conversations") || has("conversation") {
        Ok(RowFormat::ShareGpt)
    } else if has("chosen") || has("rejected") {
        Err("\"chosen\" and \"rejected\" are preference data (for DPO and the like), which is not supported; to learn the \
            preferred answers, write \"prompt\" and, for \"chosen\", \"completion\""
            .to_owned())
    } else if has("instruction") && (has("output") || has("response")) {
        Ok(RowFormat::Alpaca)
    } else if has("completion") && columns.values.get("label").is_some_and(Value::is_boolean) {
        Err(
            "\"completion\" beside a \"label\" of true or false is preference data (for KTO), which is not supported; to \
             learn all completions, or only the good ones, leave the column \"label\" out"
                .to_owned(),
        )
    } else if has("prompt") || has("completion") {
        Ok(RowFormat::PromptCompletion)
    } else if has("text") {
        Ok(RowFormat::Text)
    } else {
        Err(unknown(columns))
    }
}

/// The content of a row of this format, or what is wrong with it.
pub(super) fn read(format: RowFormat, mut columns: Columns) -> Result<ParsedRow, String> {
    if let Some(advice) = orientation(&columns) {
        return Err(advice.to_owned());
    }
    let fields = &mut columns.values;
    let content = match format {
        RowFormat::Messages => conversation(fields, "messages", false)?,
        RowFormat::ShareGpt if is_present(fields, "conversation") => conversation(fields, "conversation", true)?,
        RowFormat::ShareGpt => conversation(fields, "conversations", true)?,
        RowFormat::Alpaca => return alpaca(fields),
        RowFormat::PromptCompletion => prompt_completion(fields)?,
        RowFormat::Text => RowContent::Text(string(fields, "text")?),
    };
    Ok((content, None))
}

/// Whether a column exists and is neither null nor NaN.
fn is_present(fields: &Map<String, Value>, name: &str) -> bool {
    fields.get(name).is_some_and(|value| !is_missing(value))
}

fn expected(field: &str, what: &str, found: Option<&Value>) -> String {
    format!("expected field \"{field}\" ({what}), found {}", json_kind(found))
}

fn string(fields: &mut Map<String, Value>, field: &str) -> Result<String, String> {
    match fields.shift_remove(field) {
        Some(Value::String(text)) => Ok(text),
        other => Err(expected(field, "string", other.as_ref())),
    }
}

/// The text of the first of these columns that exists.
fn optional(fields: &mut Map<String, Value>, names: &[&str]) -> Result<String, String> {
    match names.iter().find(|name| is_present(fields, name)) {
        Some(name) => string(fields, name),
        None => Ok(String::new()),
    }
}

fn conversation(fields: &mut Map<String, Value>, field: &str, is_sharegpt: bool) -> Result<RowContent, String> {
    let mut messages = messages(fields, field, is_sharegpt)?;
    let has_system = matches!(messages.first().map(ChatMessage::role), Some("system" | "developer"));
    if let Some(Value::String(system)) = fields.shift_remove("system")
        && !has_system
        && !system.is_empty()
    {
        messages.insert(0, ChatMessage::new("system", system));
    }
    Ok(RowContent::Messages {
        messages,
        learn_from: 0,
        tools: tools(fields, is_sharegpt)?,
    })
}

/// Two texts, or two lists of messages.
fn prompt_completion(fields: &mut Map<String, Value>) -> Result<RowContent, String> {
    if let (Some(prompt), Some(completion)) = (fields.get("prompt"), fields.get("completion"))
        && matches!(
            (prompt, completion),
            (Value::Array(_), Value::String(_)) | (Value::String(_), Value::Array(_))
        )
    {
        return Err(format!(
            "field \"prompt\" is a {} and \"completion\" a {}; expected two texts, or two lists of messages",
            json_kind(Some(prompt)),
            json_kind(Some(completion))
        ));
    }
    if !fields.get("prompt").is_some_and(Value::is_array) {
        return Ok(RowContent::PromptCompletion {
            prompt: string(fields, "prompt")?,
            completion: string(fields, "completion")?,
        });
    }
    let mut all = messages(fields, "prompt", false)?;
    let learn_from = all.len();
    all.extend(messages(fields, "completion", false)?);
    Ok(RowContent::Messages {
        messages: all,
        learn_from,
        tools: tools(fields, false)?,
    })
}

/// An Alpaca row as a conversation; instruction and input become two lines of one question.
fn alpaca(fields: &mut Map<String, Value>) -> Result<ParsedRow, String> {
    let mut messages = Vec::new();
    let system = optional(fields, &["system"])?;
    if !system.is_empty() {
        messages.push(ChatMessage::new("system", system));
    }
    history(fields, &mut messages)?;
    let mut question = string(fields, "instruction")?;
    let input = optional(fields, &["input", "context"])?;
    let mut input_at = None;
    if !input.trim().is_empty() {
        if !question.is_empty() {
            question.push('\n');
        }
        input_at = Some(question.len());
        question.push_str(&input);
    }
    messages.push(ChatMessage::new("user", question));
    let answer = if is_present(fields, "output") {
        "output"
    } else {
        "response"
    };
    messages.push(ChatMessage::new("assistant", string(fields, answer)?));
    let content = RowContent::Messages {
        messages,
        learn_from: 0,
        tools: tools(fields, true)?,
    };
    Ok((content, input_at))
}

/// Earlier questions and answers, as pairs of strings.
fn history(fields: &mut Map<String, Value>, messages: &mut Vec<ChatMessage>) -> Result<(), String> {
    let turns = match fields.shift_remove("history").filter(|turns| !is_missing(turns)) {
        None => return Ok(()),
        Some(Value::Array(turns)) => turns,
        other => return Err(expected("history", "list of pairs of strings", other.as_ref())),
    };
    for (index, pair) in turns.iter().enumerate() {
        let pair = pair.as_array().map(Vec::as_slice);
        let Some([Value::String(question), Value::String(answer)]) = pair else {
            return Err(format!("field \"history\", turn {}: expected two strings", index + 1));
        };
        messages.push(ChatMessage::new("user", question));
        messages.push(ChatMessage::new("assistant", answer));
    }
    Ok(())
}

fn messages(fields: &mut Map<String, Value>, field: &str, is_sharegpt: bool) -> Result<Vec<ChatMessage>, String> {
    let list = match fields.shift_remove(field) {
        Some(Value::Array(list)) => list,
        Some(Value::String(text)) if text.trim_start().starts_with('[') => {
            let advice = "write the list itself, not JSON in a string";
            return Err(format!(
                "expected field \"{field}\" (list of messages), found string; {advice}"
            ));
        }
        other => return Err(expected(field, "list of messages", other.as_ref())),
    };
    if list.is_empty() {
        return Err(format!(
            "field \"{field}\" is an empty list; expected at least one message"
        ));
    }
    let mut messages = Vec::with_capacity(list.len() + 1);
    for (index, mut message) in list.into_iter().enumerate() {
        let said = turn(&mut message, is_sharegpt).and_then(|()| ChatMessage::from_value(message));
        messages.push(said.map_err(|reason| format!("field \"{field}\", message {}: {reason}", index + 1))?);
    }
    Ok(messages)
}

/// Renames the `from` and `value` of a `ShareGPT` turn, and its speaker. Only this format has other names for speakers.
fn turn(message: &mut Value, is_sharegpt: bool) -> Result<(), String> {
    let Value::Object(fields) = message else { return Ok(()) };
    fields.retain(|name, value| name == "value" || name == "content" || !is_missing(value));
    let is_turn = fields.contains_key("from") && !fields.contains_key("role");
    if !is_turn && !is_sharegpt {
        return Ok(());
    }
    for (from, to) in [("value", "content"), ("from", "role")] {
        if !is_turn && !fields.contains_key(from) {
            continue;
        }
        match fields.shift_remove(from) {
            Some(value) if !is_missing(&value) => drop(fields.shift_insert(0, to.to_owned(), value)),
            other if to == "content" && fields.contains_key("tool_calls") => drop(other),
            other => return Err(expected(from, "string", other.as_ref())),
        }
    }
    let Some(Value::String(speaker)) = fields.get("role") else {
        return Ok(());
    };
    let role = match speaker.to_ascii_lowercase().as_str() {
        "human" | "user" | "prompter" => "user",
        "gpt" | "assistant" | "chatgpt" | "bot" | "chatbot" | "model" | "bard" | "bing" => "assistant",
        "system" => "system",
        "developer" => "developer",
        "tool" | "observation" | "tool_response" | "function_response" | "ipython" => "tool",
        "function" if called(fields).is_none() => "tool",
        "function" | "function_call" | "tool_call" => return function_call(fields),
        other => {
            return Err(format!(
                "field \"{}\": unknown speaker \"{other}\"; expected human (or user), gpt (or assistant), system, tool (or \
                 observation), or function_call",
                if is_turn { "from" } else { "role" }
            ));
        }
    };
    fields.insert("role".to_owned(), Value::from(role));
    Ok(())
}

/// The calls that a turn of the speaker `function_call` contains as JSON: one, or a list.
fn called(fields: &Map<String, Value>) -> Option<Vec<Value>> {
    let mut said = fields.get("content")?.clone();
    unquote(&mut said).ok()?;
    let calls = match said {
        Value::Array(calls) => calls,
        call => vec![call],
    };
    let is_call = |call: &Value| call.get("name").is_some_and(Value::is_string) && call.get("arguments").is_some();
    (!calls.is_empty() && calls.iter().all(is_call)).then_some(calls)
}

fn function_call(fields: &mut Map<String, Value>) -> Result<(), String> {
    let calls = called(fields)
        .ok_or("a function_call must be JSON: {\"name\": ..., \"arguments\": {...}}, or a list of these")?;
    fields.insert("role".to_owned(), Value::from("assistant"));
    fields.insert("content".to_owned(), Value::from(""));
    fields.insert("tool_calls".to_owned(), calls.into_iter().map(as_function).collect());
    Ok(())
}

/// Wraps a bare function in the object that transformers expects.
fn as_function(function: Value) -> Value {
    if function.get("function").is_some() || function.get("name").is_none() {
        return function;
    }
    Value::from_iter([("type", Value::from("function")), ("function", function)])
}

/// The offered tools: a list, or JSON of one in a string, as in Parquet and LLaMA-Factory. Older rows call them
/// `functions`. An empty list counts as none.
fn tools(fields: &mut Map<String, Value>, wrap: bool) -> Result<Option<Value>, String> {
    let (field, wrap) = if is_present(fields, "tools") {
        ("tools", wrap)
    } else {
        ("functions", true)
    };
    let Some(mut tools) = fields.shift_remove(field) else {
        return Ok(None);
    };
    if tools.as_str().is_some_and(|text| text.trim().is_empty()) {
        return Ok(None);
    }
    let wrong = |reason| format!("field \"{field}\": {reason}");
    unquote(&mut tools).map_err(wrong)?;
    let mut list = match tools {
        Value::Array(list) if list.is_empty() => return Ok(None),
        Value::Array(list) => list,
        null if is_missing(&null) => return Ok(None),
        other => return Err(expected(field, "list", Some(&other))),
    };
    for (index, tool) in list.iter_mut().enumerate() {
        let in_tool = |reason| format!("field \"{field}\", tool {}: {reason}", index + 1);
        unquote(tool).map_err(in_tool)?;
        if let Some(parameters) = tool.pointer_mut("/function/parameters") {
            unquote(parameters).map_err(|reason| in_tool(format!("field \"parameters\": {reason}")))?;
        }
        if !tool.is_object() {
            return Err(in_tool(format!("expected an object, found {}", json_kind(Some(tool)))));
        }
    }
    Ok(Some(if wrap {
        list.into_iter().map(as_function).collect()
    } else {
        Value::Array(list)
    }))
}

/// The error for unknown columns, with a guess at what they are.
fn unknown(columns: &Columns) -> String {
    let first = |name: &str| {
        columns
            .others
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, first)| *first)
    };
    if let Some(advice) = orientation(columns) {
        return advice.to_owned();
    }
    if first("role").is_some() && first("content").is_some() {
        return "this is a message, not a row; a row is {\"messages\": [...]} with all messages of one conversation"
            .to_owned();
    }
    let lists = ["data", "rows", "train", "examples", "items", "records"];
    if let Some(name) = lists.iter().find(|name| first(name) == Some(b'[')) {
        return format!("the rows are in the field \"{name}\"; write that list alone");
    }
    let mut names: Vec<&str> = columns.others.iter().map(|(name, _)| name.as_str()).collect();
    let mut missing = Vec::new();
    for (name, value) in &columns.values {
        let group = if is_missing(value) { &mut missing } else { &mut names };
        group.push(name.as_str());
    }
    let shown: Vec<String> = names
        .iter()
        .take(8)
        .map(|name| format!("\"{}\"", shortened(name)))
        .collect();
    let others = if names.len() > shown.len() { ", and others" } else { "" };
    match (shown.is_empty(), missing.first()) {
        (true, Some(name)) => format!("{EXPECTED}; this one has \"{name}\", but it is null"),
        (true, None) => format!("{EXPECTED}; this one has no columns"),
        (false, _) => format!("{EXPECTED}; this one has {}{others}", shown.join(", ")),
    }
}

fn shortened(name: &str) -> String {
    name.chars().take(40).collect()
}

/// The orientation of a whole table written as one object, as pandas and datasets can: by columns or by row numbers.
fn orientation(columns: &Columns) -> Option<&'static str> {
    const RECORDS: &str = "this is a whole table in one object, as pandas writes it by default; write rows instead: \
        to_json(\"rows.jsonl\", orient=\"records\", lines=True)";
    let is_index = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    let by_column = |value: &Value| {
        let fields = value.as_object();
        fields.is_some_and(|fields| !fields.is_empty() && fields.keys().all(|name| is_index(name)))
    };
    let first = |name: &str, byte: u8| columns.others.iter().any(|other| other.0 == name && other.1 == byte);
    let by_row = columns.values.is_empty()
        && !columns.others.is_empty()
        && columns
            .others
            .iter()
            .all(|(name, first)| is_index(name) && *first == b'{');
    let is_split = first("columns", b'[') && first("data", b'[');
    let is_schema = first("schema", b'{') && first("data", b'[');
    let is_table = by_row || is_split || is_schema || columns.values.values().any(by_column);
    is_table.then_some(RECORDS)
}

/// The prompt of the Alpaca models, for a model without a chat template.
pub(super) fn alpaca_prompt(messages: &[ChatMessage], input_at: Option<usize>) -> Option<RowContent> {
    let (answer, before) = messages.split_last()?;
    let (question, before) = before.split_last()?;
    let system = before.first().filter(|message| message.role() == "system");
    let text = question.content()?;
    let (instruction, input) = match input_at {
        Some(at) => {
            let instruction = text.get(..at)?;
            (instruction.strip_suffix('\n').unwrap_or(instruction), text.get(at..))
        }
        None => (text, None),
    };
    let preamble = match (system.and_then(ChatMessage::content), input) {
        (Some(system), _) => system,
        (None, Some(_)) => {
            "Below is an instruction that describes a task, paired with an input that provides further context. \
             Write a response that appropriately completes the request."
        }
        (None, None) => {
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        }
    };
    let mut prompt = format!("{preamble}\n\n");
    for pair in before[usize::from(system.is_some())..].chunks_exact(2) {
        let (question, answer) = (pair[0].content()?, pair[1].content()?);
        prompt.extend(["### Instruction:\n", question, "\n\n### Response:\n", answer, "\n\n"]);
    }
    prompt.extend(["### Instruction:\n", instruction, "\n\n"]);
    if let Some(input) = input {
        prompt.extend(["### Input:\n", input, "\n\n"]);
    }
    prompt.push_str("### Response:\n");
    Some(RowContent::PromptCompletion {
        prompt,
        completion: answer.content()?.to_owned(),
    })
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
