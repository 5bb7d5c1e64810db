//! The specification as data: one row per method of AMQP 0-9-1, RabbitMQ's extensions included.
//!
//! A row gives the method's name, its class and method id, the methods that answer it (a row with answers is
//! a synchronous method), whether a content follows, and its fields in their order on the wire. The macro
//! below makes from it a struct per method, the [`Method`] enum, encoding, decoding and the names. A unit
//! test compares every row with the published XML.
//!
//! Reserved fields are ordinary fields that nobody sets: requests are built with `..Default::default()`.

use super::{
    value::FieldTable,
    wire::{Field, LongStr, Malformed, Reader, ShortStr, Table, Writer},
};
#[cfg(any(test, fuzzing))]
use {super::frame, crate::error};

/// What it takes to send a method, whichever it is: so what sends methods is compiled once, not once for each.
pub(crate) trait Encode {
    /// Class and method.
    fn ids(&self) -> (u16, u16);
    fn name(&self) -> &'static str;
    /// The names of the methods that answer this one; none when it is asynchronous.
    fn replies(&self) -> &'static [&'static str];
    fn write(&self, writer: &mut Writer<'_>);
}

/// One method: what every row of the table has.
pub(crate) trait MethodBody<'a>: Encode + Sized + Into<Method<'a>> {
    const CLASS: u16;
    const METHOD: u16;
    const NAME: &'static str;
    const REPLIES: &'static [&'static str];
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed>;
}

/// What a test or a dissector may want to know about a method without having one.
#[cfg(test)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) ids: (u16, u16),
    pub(crate) replies: &'static [&'static str],
    pub(crate) has_content: bool,
    pub(crate) fields: &'static [(&'static str, &'static str)],
}

/// `Name<'lifetime if it borrows> = class method "its.name" [replies] content { field: type, … }`
macro_rules! methods {
    ($($name:ident $(<$life:lifetime>)? = $class:literal $method:literal $text:literal
       $([$($reply:literal)+])? $($content:ident)? { $($field:ident: $kind:ty),* })+) => {
        $(
            #[derive(Debug, Clone, Copy, PartialEq, Default)]
            pub(crate) struct $name $(<$life>)? { $(pub(crate) $field: $kind),* }

            impl<'a> MethodBody<'a> for $name $(<$life>)? {
                const CLASS: u16 = $class;
                const METHOD: u16 = $method;
                const NAME: &'static str = $text;
                const REPLIES: &'static [&'static str] = &[$($($reply),+)?];
                #[inline]
                fn read(_reader: &mut Reader<'a>) -> Result<Self, Malformed> {
                    Ok($name { $($field: Field::read(_reader)?),* })
                }
            }

            impl $(<$life>)? Encode for $name $(<$life>)? {
                fn ids(&self) -> (u16, u16) { ($class, $method) }
                fn name(&self) -> &'static str { $text }
                fn replies(&self) -> &'static [&'static str] { &[$($($reply),+)?] }
                fn write(&self, _writer: &mut Writer<'_>) { $(self.$field.write(_writer);)* }
            }

            impl<'a> From<$name $(<$life>)?> for Method<'a> {
                fn from(body: $name $(<$life>)?) -> Method<'a> { Method::$name(body) }
            }
        )+

        /// Any method.
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub(crate) enum Method<'a> { $($name($name $(<$life>)?)),+ }

        impl<'a> Method<'a> {
            /// Decodes the payload of a method frame; bytes left over are an error.
            pub(crate) fn decode(payload: &'a [u8]) -> Result<Method<'a>, Malformed> {
                let mut reader = Reader::new(payload);
                let (class, method) = (reader.u16()?, reader.u16()?);
                let decoded = match (class, method) {
                    $(($class, $method) => Method::$name(MethodBody::read(&mut reader)?),)+
                    _ => return Err(Malformed::UnknownMethod { class, method }),
                };
                reader.finish().map(|()| decoded)
            }

            /// The method's name in the specification, such as `queue.declare-ok`.
            pub(crate) fn name(&self) -> &'static str {
                match self { $(Method::$name(_) => $text),+ }
            }

            /// The fields with their names in the order of the wire, for people.
            pub(crate) fn fields(&self) -> FieldTable {
                match self {
                    $(Method::$name($name { $($field),* }) => {
                        let mut _fields = FieldTable::new();
                        $(_fields.insert(stringify!($field), $field.value());)*
                        _fields
                    })+
                }
            }
        }

        #[cfg(any(test, fuzzing))]
        impl Method<'_> {
            /// Appends the frame of a method that is only known at run time.
            pub(crate) fn write_frame(
                &self, out: &mut Vec<u8>, channel: u16, max_frame: usize,
            ) -> error::Result<()> {
                match self { $(Method::$name(body) => frame::write_method(out, channel, max_frame, body)),+ }
            }
        }

        /// The name of the method with these ids; empty when there is none.
        pub(crate) fn method_name(class: u16, method: u16) -> &'static str {
            match (class, method) { $(($class, $method) => $text,)+ _ => "" }
        }

        #[cfg(test)]
        impl<'a> Method<'a> {
            pub(crate) const TABLE: &'static [Row] = &[$(Row {
                name: $text,
                ids: ($class, $method),
                replies: &[$($($reply),+)?],
                has_content: !<[&str]>::is_empty(&[$(stringify!($content))?]),
                fields: &[$((stringify!($field), <$kind as Field<'a>>::KIND)),*],
            }),+];
        }
    };
}

methods! {
    ConnectionStart<'a> = 10 10 "connection.start" ["connection.start-ok"] { version_major: u8, version_minor: u8, server_properties: Table<'a>, mechanisms: LongStr<'a>, locales: LongStr<'a> }
    ConnectionStartOk<'a> = 10 11 "connection.start-ok" { client_properties: Table<'a>, mechanism: ShortStr<'a>, response: LongStr<'a>, locale: ShortStr<'a> }
    ConnectionSecure<'a> = 10 20 "connection.secure" ["connection.secure-ok"] { challenge: LongStr<'a> }
    ConnectionSecureOk<'a> = 10 21 "connection.secure-ok" { response: LongStr<'a> }
    ConnectionTune = 10 30 "connection.tune" ["connection.tune-ok"] { channel_max: u16, frame_max: u32, heartbeat: u16 }
    ConnectionTuneOk = 10 31 "connection.tune-ok" { channel_max: u16, frame_max: u32, heartbeat: u16 }
    ConnectionOpen<'a> = 10 40 "connection.open" ["connection.open-ok"] { virtual_host: ShortStr<'a>, reserved_1: ShortStr<'a>, reserved_2: bool }
    ConnectionOpenOk<'a> = 10 41 "connection.open-ok" { reserved_1: ShortStr<'a> }
    ConnectionClose<'a> = 10 50 "connection.close" ["connection.close-ok"] { reply_code: u16, reply_text: ShortStr<'a>, class_id: u16, method_id: u16 }
    ConnectionCloseOk = 10 51 "connection.close-ok" {}
    ConnectionBlocked<'a> = 10 60 "connection.blocked" { reason: ShortStr<'a> }
    ConnectionUnblocked = 10 61 "connection.unblocked" {}
    ConnectionUpdateSecret<'a> = 10 70 "connection.update-secret" ["connection.update-secret-ok"] { new_secret: LongStr<'a>, reason: ShortStr<'a> }
    ConnectionUpdateSecretOk = 10 71 "connection.update-secret-ok" {}

    ChannelOpen<'a> = 20 10 "channel.open" ["channel.open-ok"] { reserved_1: ShortStr<'a> }
    ChannelOpenOk<'a> = 20 11 "channel.open-ok" { reserved_1: LongStr<'a> }
    ChannelFlow = 20 20 "channel.flow" ["channel.flow-ok"] { active: bool }
    ChannelFlowOk = 20 21 "channel.flow-ok" { active: bool }
    ChannelClose<'a> = 20 40 "channel.close" ["channel.close-ok"] { reply_code: u16, reply_text: ShortStr<'a>, class_id: u16, method_id: u16 }
    ChannelCloseOk = 20 41 "channel.close-ok" {}

    ExchangeDeclare<'a> = 40 10 "exchange.declare" ["exchange.declare-ok"] { reserved_1: u16, exchange: ShortStr<'a>, type_: ShortStr<'a>, passive: bool, durable: bool, auto_delete: bool, internal: bool, no_wait: bool, arguments: Table<'a> }
    ExchangeDeclareOk = 40 11 "exchange.declare-ok" {}
    ExchangeDelete<'a> = 40 20 "exchange.delete" ["exchange.delete-ok"] { reserved_1: u16, exchange: ShortStr<'a>, if_unused: bool, no_wait: bool }
    ExchangeDeleteOk = 40 21 "exchange.delete-ok" {}
    ExchangeBind<'a> = 40 30 "exchange.bind" ["exchange.bind-ok"] { reserved_1: u16, destination: ShortStr<'a>, source: ShortStr<'a>, routing_key: ShortStr<'a>, no_wait: bool, arguments: Table<'a> }
    ExchangeBindOk = 40 31 "exchange.bind-ok" {}
    ExchangeUnbind<'a> = 40 40 "exchange.unbind" ["exchange.unbind-ok"] { reserved_1: u16, destination: ShortStr<'a>, source: ShortStr<'a>, routing_key: ShortStr<'a>, no_wait: bool, arguments: Table<'a> }
    ExchangeUnbindOk = 40 51 "exchange.unbind-ok" {}

    QueueDeclare<'a> = 50 10 "queue.declare" ["queue.declare-ok"] { reserved_1: u16, queue: ShortStr<'a>, passive: bool, durable: bool, exclusive: bool, auto_delete: bool, no_wait: bool, arguments: Table<'a> }
    QueueDeclareOk<'a> = 50 11 "queue.declare-ok" { queue: ShortStr<'a>, message_count: u32, consumer_count: u32 }
    QueueBind<'a> = 50 20 "queue.bind" ["queue.bind-ok"] { reserved_1: u16, queue: ShortStr<'a>, exchange: ShortStr<'a>, routing_key: ShortStr<'a>, no_wait: bool, arguments: Table<'a> }
    QueueBindOk = 50 21 "queue.bind-ok" {}
    QueuePurge<'a> = 50 30 "queue.purge" ["queue.purge-ok"] { reserved_1: u16, queue: ShortStr<'a>, no_wait: bool }
    QueuePurgeOk = 50 31 "queue.purge-ok" { message_count: u32 }
    QueueDelete<'a> = 50 40 "queue.delete" ["queue.delete-ok"] { reserved_1: u16, queue: ShortStr<'a>, if_unused: bool, if_empty: bool, no_wait: bool }
    QueueDeleteOk = 50 41 "queue.delete-ok" { message_count: u32 }
    QueueUnbind<'a> = 50 50 "queue.unbind" ["queue.unbind-ok"] { reserved_1: u16, queue: ShortStr<'a>, exchange: ShortStr<'a>, routing_key: ShortStr<'a>, arguments: Table<'a> }
    QueueUnbindOk = 50 51 "queue.unbind-ok" {}

    BasicQos = 60 10 "basic.qos" ["basic.qos-ok"] { prefetch_size: u32, prefetch_count: u16, global: bool }
    BasicQosOk = 60 11 "basic.qos-ok" {}
    BasicConsume<'a> = 60 20 "basic.consume" ["basic.consume-ok"] { reserved_1: u16, queue: ShortStr<'a>, consumer_tag: ShortStr<'a>, no_local: bool, no_ack: bool, exclusive: bool, no_wait: bool, arguments: Table<'a> }
    BasicConsumeOk<'a> = 60 21 "basic.consume-ok" { consumer_tag: ShortStr<'a> }
    BasicCancel<'a> = 60 30 "basic.cancel" ["basic.cancel-ok"] { consumer_tag: ShortStr<'a>, no_wait: bool }
    BasicCancelOk<'a> = 60 31 "basic.cancel-ok" { consumer_tag: ShortStr<'a> }
    BasicPublish<'a> = 60 40 "basic.publish" content { reserved_1: u16, exchange: ShortStr<'a>, routing_key: ShortStr<'a>, mandatory: bool, immediate: bool }
    BasicReturn<'a> = 60 50 "basic.return" content { reply_code: u16, reply_text: ShortStr<'a>, exchange: ShortStr<'a>, routing_key: ShortStr<'a> }
    BasicDeliver<'a> = 60 60 "basic.deliver" content { consumer_tag: ShortStr<'a>, delivery_tag: u64, redelivered: bool, exchange: ShortStr<'a>, routing_key: ShortStr<'a> }
    BasicGet<'a> = 60 70 "basic.get" ["basic.get-ok" "basic.get-empty"] { reserved_1: u16, queue: ShortStr<'a>, no_ack: bool }
    BasicGetOk<'a> = 60 71 "basic.get-ok" content { delivery_tag: u64, redelivered: bool, exchange: ShortStr<'a>, routing_key: ShortStr<'a>, message_count: u32 }
    BasicGetEmpty<'a> = 60 72 "basic.get-empty" { reserved_1: ShortStr<'a> }
    BasicAck = 60 80 "basic.ack" { delivery_tag: u64, multiple: bool }
    BasicReject = 60 90 "basic.reject" { delivery_tag: u64, requeue: bool }
    BasicRecoverAsync = 60 100 "basic.recover-async" { requeue: bool }
    BasicRecover = 60 110 "basic.recover" ["basic.recover-ok"] { requeue: bool }
    BasicRecoverOk = 60 111 "basic.recover-ok" {}
    BasicNack = 60 120 "basic.nack" { delivery_tag: u64, multiple: bool, requeue: bool }

    TxSelect = 90 10 "tx.select" ["tx.select-ok"] {}
    TxSelectOk = 90 11 "tx.select-ok" {}
    TxCommit = 90 20 "tx.commit" ["tx.commit-ok"] {}
    TxCommitOk = 90 21 "tx.commit-ok" {}
    TxRollback = 90 30 "tx.rollback" ["tx.rollback-ok"] {}
    TxRollbackOk = 90 31 "tx.rollback-ok" {}

    ConfirmSelect = 85 10 "confirm.select" ["confirm.select-ok"] { nowait: bool }
    ConfirmSelectOk = 85 11 "confirm.select-ok" {}
}

#[cfg(test)]
pub(crate) mod tests;
