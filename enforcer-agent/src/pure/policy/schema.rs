//! The JSON Schema of policies, and the reference for people, both made from [`super::model`].

use std::fmt::Write as _;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::model::{Document, RECORDS};

/// The keyword for what is counted, in a field's schema.
const UNIT: &str = "x-unit";
/// The keyword for what a record or field becomes in the data path.
const COMPILES_TO: &str = "x-compilesTo";

/// The JSON Schema (2020-12) of a document of a policy.
#[must_use]
pub fn schema() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<Document>().to_value();
    schema["title"] = json!("GovernancePolicy");
    tidy(&mut schema);
    schema
}

/// The schema as text, ending with a line break.
#[must_use]
pub fn text() -> String {
    format!("{:#}\n", schema())
}

/// Takes out what the generator adds for `Option`, since a policy has no null, and line breaks out of descriptions.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(description)) = fields.get_mut("description") {
                *description = description.split_whitespace().collect::<Vec<_>>().join(" ");
            }
            take_out_null(fields);
            fields.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn take_out_null(fields: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = fields.get_mut("type") {
        types.retain(|kind| kind != "null");
        if let [only] = types.as_slice() {
            fields["type"] = only.clone();
        }
    }
    let null = json!({"type": "null"});
    let Some(Value::Array(choices)) = fields.get("anyOf") else {
        return;
    };
    if let [Value::Object(chosen), other] = choices.as_slice()
        && *other == null
    {
        let chosen = chosen.clone();
        fields.remove("anyOf");
        // What the field says of itself is more to the point than what its type says.
        for (keyword, value) in chosen {
            fields.entry(keyword).or_insert(value);
        }
    }
}

/// The reference: every record and every kind of value, in Markdown.
#[must_use]
pub fn reference() -> String {
    let schema = schema();
    let mut text = String::from(
        "# Policy reference\n\nEvery field of a policy. This text is made from the types that read policies, as is the JSON \
         Schema\n(`enforcer-agent policy schema`, [policies/schema.json](../policies/schema.json)); [policy.md](policy.md) is the \
         guide.\n\nA field without a default is required. No field may be null.\n",
    );
    for (record, fields) in RECORDS {
        let definition = match *record {
            "Document" => &schema,
            name => &schema["$defs"][name],
        };
        write_record(&mut text, record, fields, definition);
    }
    text += "\n## Values\n\n| Type | Written as | Examples |\n| --- | --- | --- |\n";
    let definitions = schema["$defs"].as_object().into_iter().flatten();
    let is_record = |name: &str| RECORDS.iter().any(|(record, _)| *record == name);
    for (name, definition) in definitions.filter(|(name, _)| !is_record(name)) {
        let _infallible = writeln!(
            text,
            "| <a id=\"{}\"></a>{name} | {} | {} |",
            anchor(name),
            written_as(definition),
            list(definition.get("examples"))
        );
    }
    text
}

fn write_record(text: &mut String, record: &str, fields: &[&str], definition: &Value) {
    let _infallible = write!(text, "\n## {record}\n\n{}\n", string(definition, "description"));
    let compiles_to = string(definition, COMPILES_TO);
    if !compiles_to.is_empty() {
        let _infallible = write!(text, "\nCompiles to {compiles_to}.\n");
    }
    *text += "\n| Field | Type | Default | Example | Meaning |\n| --- | --- | --- | --- | --- |\n";
    let required: Vec<&str> = definition["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for field in fields {
        let property = &definition["properties"][field];
        let default = match property.get("default") {
            Some(default) => code(default),
            None if required.contains(field) => "required".to_owned(),
            None => "none".to_owned(),
        };
        let unit = match string(property, UNIT) {
            "" => String::new(),
            unit => format!(", {unit}"),
        };
        let mut meaning = string(property, "description").to_owned();
        let compiles_to = string(property, COMPILES_TO);
        if !compiles_to.is_empty() {
            let _infallible = write!(meaning, " Compiles to {compiles_to}.");
        }
        let _infallible = writeln!(
            text,
            "| `{field}` | {}{unit} | {default} | {} | {meaning} |",
            type_of(property),
            list(property.get("examples")),
        );
    }
}

/// A link to what a field is.
fn type_of(property: &Value) -> String {
    let link = |reference: &Value| {
        let name = reference
            .as_str()
            .and_then(|reference| reference.rsplit('/').next());
        name.map(|name| format!("[{name}](#{})", anchor(name)))
    };
    if let Some(link) = property.get("$ref").and_then(link) {
        return link;
    }
    let item = property.get("items").and_then(|items| items.get("$ref"));
    item.and_then(link).map_or_else(
        || string(property, "type").to_owned(),
        |link| format!("list of {link}"),
    )
}

fn anchor(name: &str) -> String {
    name.to_lowercase()
}

/// What a kind of value looks like: what its description says, and its words if this leaves some out.
fn written_as(definition: &Value) -> String {
    let of_enum = definition.get("enum").and_then(Value::as_array);
    let words = of_enum.into_iter().flatten().chain(definition.get("const"));
    let description = string(definition, "description");
    let mut distinct = Vec::new();
    for word in words.map(code) {
        // A word with and without quotes is the same word.
        if !distinct.contains(&word) {
            distinct.push(word);
        }
    }
    if distinct.iter().all(|word| description.contains(word)) {
        return description.to_owned();
    }
    [description, &distinct.join(", ")].join(" ").trim().to_owned()
}

fn string<'a>(value: &'a Value, keyword: &str) -> &'a str {
    value.get(keyword).and_then(Value::as_str).unwrap_or_default()
}

fn list(values: Option<&Value>) -> String {
    let values = values.and_then(Value::as_array).into_iter().flatten();
    values.map(code).collect::<Vec<_>>().join(", ")
}

/// A value as it is written in a policy.
fn code(value: &Value) -> String {
    let written = match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(plain).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(key, value)| format!("{key}: {}", plain(value)))
                .collect();
            format!("{{{}}}", fields.join(", "))
        }
        other => other.to_string(),
    };
    format!("`{written}`")
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls `look` with every schema within a schema.
    fn visit(value: &Value, look: &mut impl FnMut(&Map<String, Value>)) {
        match value {
            Value::Object(fields) => {
                look(fields);
                fields.values().for_each(|value| visit(value, look));
            }
            Value::Array(items) => items.iter().for_each(|value| visit(value, look)),
            _ => {}
        }
    }

    #[test]
    fn nothing_may_be_null_and_every_field_says_what_it_is() {
        let schema = schema();
        visit(&schema, &mut |fields| {
            assert_ne!(fields.get("type"), Some(&json!("null")));
            assert!(!fields.contains_key("anyOf"), "{fields:?}");
        });
        for (record, fields) in RECORDS {
            let definition = if *record == "Document" {
                &schema
            } else {
                &schema["$defs"][record]
            };
            assert_eq!(definition["additionalProperties"], false, "{record}");
            for field in *fields {
                let property = &definition["properties"][field];
                assert!(
                    !string(property, "description").is_empty(),
                    "{record}.{field}: {property}"
                );
                assert!(!type_of(property).is_empty(), "{record}.{field}: {property}");
            }
            let properties = definition["properties"].as_object().expect("a record has fields");
            assert_eq!(properties.len(), fields.len(), "{record}");
        }
    }

    #[test]
    fn the_reference_names_every_field_and_every_kind_of_value() {
        let reference = reference();
        for (record, fields) in RECORDS {
            assert!(reference.contains(&format!("\n## {record}\n")));
            for field in *fields {
                assert!(reference.contains(&format!("| `{field}` |")), "{field}");
            }
        }
        assert!(reference.contains("list of [Prefix](#prefix)"), "{reference}");
        assert!(reference.contains("connections/s, 1 to 10^9"), "{reference}");
    }
}
