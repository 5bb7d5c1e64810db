//! The table against the published XML, both ways.
//!
//! The XML is the specification's own, with RabbitMQ's extensions up to 2013 (see `tests/data/README.md`).
//! Whatever the table says otherwise is listed here with its reason: [`DEVIATIONS`] and [`LATER_ADDITIONS`].
//! A line of these lists that is no longer needed fails the test too.

pub(crate) mod random;
mod round_trip;

use std::collections::BTreeMap;

use super::Method;
use crate::error::ReplyCode;
use crate::protocol::frame::{self, FrameKind};
use crate::protocol::properties::BasicProperties;

const XML: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/amqp0-9-1.stripped.extended.xml"));

/// Methods that RabbitMQ added after the XML was published, in the XML's own notation. Taken from RabbitMQ's
/// documentation (`connection.blocked`: 3.2, `connection.update-secret`: 3.8) and compared with what the
/// broker's own framing module answers.
const LATER_ADDITIONS: &str = r#"
    <class name="connection" index="10">
      <method name="blocked" index="60"><field name="reason" type="shortstr"/></method>
      <method name="unblocked" index="61"></method>
      <method name="update-secret" synchronous="1" index="70">
        <response name="update-secret-ok"/>
        <field name="new-secret" type="longstr"/>
        <field name="reason" type="shortstr"/>
      </method>
      <method name="update-secret-ok" synchronous="1" index="71"></method>
    </class>"#;

/// Where the table differs from the XML on purpose.
struct Deviation {
    method: &'static str,
    reason: &'static str,
    /// Makes what the table should say of what the XML says.
    correct: fn(&mut Published),
}

const DEVIATIONS: &[Deviation] = &[
    Deviation {
        method: "basic.recover",
        reason: "the XML marks recover-ok as synchronous, but forgets that it answers recover; brokers do answer",
        correct: |row| {
            row.synchronous = true;
            row.replies = vec!["basic.recover-ok".to_owned()];
        },
    },
    Deviation {
        method: "channel.flow-ok",
        reason: "it answers channel.flow, where it is listed as the response, but is not marked as synchronous",
        correct: |row| row.synchronous = true,
    },
];

/// What the XML says about one method, with domains resolved and names as the crate spells them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Published {
    name: String,
    ids: (u16, u16),
    synchronous: bool,
    replies: Vec<String>,
    has_content: bool,
    fields: Vec<(String, String)>,
}

/// Everything that the XML publishes.
#[derive(Debug, Default)]
struct Specification {
    methods: BTreeMap<String, Published>,
    /// The properties of basic, in their order on the wire.
    properties: Vec<(String, String)>,
    /// Name, value and class (`soft-error`, `hard-error`, or nothing).
    constants: BTreeMap<String, (u16, String)>,
    version: Vec<u8>,
}

/// One tag, such as `<field name="queue" domain="queue-name"/>`.
struct Tag<'x> {
    name: &'x str,
    attributes: Vec<(&'x str, &'x str)>,
}

impl<'x> Tag<'x> {
    fn get(&self, name: &str) -> &'x str {
        self.attributes.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }

    fn number(&self, name: &str) -> u16 {
        self.get(name).parse().unwrap_or_else(|_| panic!("<{}> has no number {name:?}", self.name))
    }
}

/// The tags of an XML text that needs no more than this: no entities, no text, no `>` inside quotes. A closing
/// tag's name starts with `/`; comments and the declaration are left out.
fn tags(mut xml: &str) -> Vec<Tag<'_>> {
    let mut tags = Vec::new();
    while let Some((_, rest)) = xml.split_once('<') {
        let end = if rest.starts_with("!--") { "-->" } else { ">" };
        let (inside, after) = rest.split_once(end).expect("every tag ends");
        xml = after;
        if inside.starts_with(['!', '?']) {
            continue;
        }
        let inside = inside.strip_suffix('/').unwrap_or(inside);
        let (name, mut list) = inside.split_once(char::is_whitespace).unwrap_or((inside, ""));
        let mut attributes = Vec::new();
        while let Some((attribute, rest)) = list.split_once("=\"") {
            let (value, rest) = rest.split_once('"').expect("every value ends");
            attributes.push((attribute.trim(), value));
            list = rest;
        }
        tags.push(Tag { name, attributes });
    }
    tags
}

fn rust_name(name: &str) -> String {
    if name == "type" { "type_".to_owned() } else { name.replace('-', "_") }
}

fn specification(xml: &str) -> Specification {
    let mut published = Specification::default();
    let mut domains = BTreeMap::new();
    let (mut class, mut method) = (("", 0), None::<Published>);
    for tag in tags(xml) {
        match tag.name {
            "amqp" => {
                published.version =
                    ["major", "minor", "revision"].map(|part| tag.number(part) as u8).to_vec();
            }
            "constant" => {
                let constant = (tag.number("value"), tag.get("class").to_owned());
                assert_eq!(published.constants.insert(tag.get("name").to_owned(), constant), None);
            }
            "domain" => {
                domains.insert(tag.get("name"), tag.get("type"));
            }
            "class" => class = (tag.get("name"), tag.number("index")),
            "method" => {
                method = Some(Published {
                    name: format!("{}.{}", class.0, tag.get("name")),
                    ids: (class.1, tag.number("index")),
                    synchronous: tag.get("synchronous") == "1",
                    replies: Vec::new(),
                    has_content: tag.get("content") == "1",
                    fields: Vec::new(),
                });
            }
            "response" => {
                let reply = format!("{}.{}", class.0, tag.get("name"));
                method.as_mut().expect("a response belongs to a method").replies.push(reply);
            }
            "field" => {
                let domain = tag.get("domain");
                let kind = if domain.is_empty() { tag.get("type") } else { domains[domain] };
                let fields = method.as_mut().map_or(&mut published.properties, |method| &mut method.fields);
                fields.push((rust_name(tag.get("name")), kind.to_owned()));
            }
            "/method" => {
                let complete = method.take().expect("a method ends that began");
                assert_eq!(published.methods.insert(complete.name.clone(), complete), None);
            }
            "/amqp" | "/class" | "/domain" | "/field" | "assert" | "chassis" => {}
            other => panic!("the scanner does not know <{other}>"),
        }
    }
    published
}

/// What the table should be: the XML, the later additions, and the deviations.
fn expected() -> BTreeMap<String, Published> {
    let mut methods = specification(XML).methods;
    assert_eq!(methods.len(), 60, "the scanner sees every method of the XML");
    for (name, addition) in specification(LATER_ADDITIONS).methods {
        assert_eq!(methods.insert(name, addition), None, "the XML knows this addition by now");
    }
    for Deviation { method, reason, correct } in DEVIATIONS {
        let row = methods.get_mut(*method).expect("a deviation names a method");
        let before = row.clone();
        correct(row);
        assert_ne!(before, *row, "{method} needs no correction ({reason})");
    }
    methods
}

/// The table in the same shape. A row is synchronous when it has replies or is one.
fn table() -> BTreeMap<String, Published> {
    let replies: Vec<&str> = Method::TABLE.iter().flat_map(|row| row.replies).copied().collect();
    let rows = Method::TABLE.iter().map(|row| Published {
        name: row.name.to_owned(),
        ids: row.ids,
        synchronous: !row.replies.is_empty() || replies.contains(&row.name),
        replies: row.replies.iter().map(ToString::to_string).collect(),
        has_content: row.has_content,
        fields: row.fields.iter().map(|(name, kind)| (name.to_string(), kind.to_string())).collect(),
    });
    let table: BTreeMap<String, Published> = rows.map(|row| (row.name.clone(), row)).collect();
    assert_eq!(table.len(), Method::TABLE.len(), "no name is there twice");
    table
}

/// Rows 90 and 91 stand on this: every class id, method id, name, field, type, order, synchronous flag, reply
/// and content flag is the published one, no method is missing and none is there that nobody published.
#[test]
fn every_row_is_as_published() {
    let (table, expected) = (table(), expected());
    for (name, row) in &expected {
        assert_eq!(table.get(name), Some(row), "{name} in the table, and as published");
    }
    for name in table.keys() {
        assert!(expected.contains_key(name), "{name} is in the table, but nobody published it");
    }
}

/// Row 52: the fourteen properties have their published order, types and flag bits.
#[test]
fn every_property_is_as_published() {
    let mut published = specification(XML).properties;
    let last = published.last_mut().expect("basic has properties");
    assert_eq!(last.0, "reserved");
    // The XML retired the name, but RabbitMQ and all clients go on calling it so.
    last.0 = "cluster_id".to_owned();

    let fields =
        BasicProperties::FIELDS.iter().zip((2..=15).rev()).map(|((bit, name, kind), expected_bit)| {
            assert_eq!(*bit, expected_bit, "the flag of {name}: from bit 15 downwards");
            let kind = match *kind {
                "String" => "shortstr",
                "FieldTable" => "table",
                "DeliveryMode" | "u8" => "octet",
                "u64" => "timestamp",
                other => panic!("{other} is no property type"),
            };
            (name.to_string(), kind.to_owned())
        });
    assert_eq!(fields.collect::<Vec<_>>(), published);
    assert_eq!(BasicProperties::FIELDS.len(), published.len());
}

/// Rows 100 and 101 stand on this: the reply codes have the published values and names.
#[test]
fn every_reply_code_is_as_published() {
    let mut published: BTreeMap<String, u16> = specification(XML)
        .constants
        .into_iter()
        .filter(|(name, (_, class))| name == "reply-success" || class.ends_with("-error"))
        .map(|(name, (value, _))| (name.to_uppercase().replace('-', "_"), value))
        .collect();
    assert_eq!(published.len(), 18, "the scanner sees every reply code of the XML");
    // The XML lost it on the way from 0-9 to 0-9-1, but it is what brokers return a message with.
    assert_eq!(published.insert("NO_ROUTE".to_owned(), 312), None);

    let named = ReplyCode::NAMED.iter().map(|&code| (code.name().to_owned(), u16::from(code)));
    assert_eq!(named.collect::<BTreeMap<_, _>>(), published);
    assert_eq!(ReplyCode::NAMED.len(), published.len());
}

/// Row 91 stands on this: frame types, end octet, smallest frame and protocol header are the published ones.
#[test]
fn every_frame_constant_is_as_published() {
    let published = specification(XML);
    let octet = |kind| u16::from(frame::header(kind, 0, 0)[0]);
    let ours = [
        ("frame-method", octet(FrameKind::Method)),
        ("frame-header", octet(FrameKind::Header)),
        ("frame-body", octet(FrameKind::Body)),
        ("frame-heartbeat", octet(FrameKind::Heartbeat)),
        ("frame-min-size", u16::try_from(frame::MIN_FRAME_MAX).unwrap()),
        ("frame-end", u16::from(frame::TRAILER[0])),
    ];
    for (name, value) in ours {
        assert_eq!(published.constants[name].0, value, "{name}");
    }
    let frames = published.constants.keys().filter(|name| *name != "frame-error");
    assert_eq!(frames.filter(|name| name.starts_with("frame-")).count(), ours.len());
    assert_eq!(frame::PROTOCOL_HEADER[..5], *b"AMQP\0");
    assert_eq!(frame::PROTOCOL_HEADER[5..], published.version);
}
