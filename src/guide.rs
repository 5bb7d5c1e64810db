#![doc = include_str!("guide/links.md")]
#![doc = include_str!("../docs/index.md")]
// The pages link to each other's files, for readers of the repository. `links.md` gives these links another
// meaning in rustdoc: of two definitions of a link Markdown takes the first. `tests/docs.rs` compares the
// two.
#![allow(rustdoc::redundant_explicit_links)]

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/introduction.md")]
pub mod introduction {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/sync-and-async.md")]
///
/// In the reference: [`Connection::with_channel`](crate::Connection::with_channel),
/// [`Channel::flow`](crate::Channel::flow), [`Channel::no_wait`](crate::Channel::no_wait),
/// [`Channel::deferred`](crate::Channel::deferred).
pub mod sync_and_async {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/connecting.md")]
///
/// In the reference: [`Connection`](crate::Connection), [`Config`](crate::Config),
/// [`TlsOptions`](crate::TlsOptions), [`Stream`](crate::Stream), [`SaslMechanism`](crate::SaslMechanism).
pub mod connecting {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/channels.md")]
///
/// In the reference: [`Channel`](crate::Channel), [`Deferred`](crate::Deferred), [`Pending`](crate::Pending),
/// [`NoWait`](crate::NoWait).
pub mod channels {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/queues-and-exchanges.md")]
///
/// In the reference: [`QueueDeclare`](crate::QueueDeclare), [`QueueBind`](crate::QueueBind),
/// [`ExchangeDeclare`](crate::ExchangeDeclare), [`ExchangeBind`](crate::ExchangeBind),
/// [`FieldTable`](crate::FieldTable).
pub mod queues_and_exchanges {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/publishing.md")]
///
/// In the reference: [`Publish`](crate::Publish), [`BasicProperties`](crate::BasicProperties),
/// [`Channel::basic_publish`](crate::Channel::basic_publish), [`Confirm`](crate::Confirm),
/// [`Outcome`](crate::Outcome), [`Returned`](crate::Returned).
pub mod publishing {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/consuming.md")]
///
/// In the reference: [`Consumer`](crate::Consumer), [`Consume`](crate::Consume),
/// [`Delivery`](crate::Delivery), [`select`](crate::select()), [`Qos`](crate::Qos), [`Get`](crate::Get).
pub mod consuming {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/listeners.md")]
///
/// In the reference: [`Consumer::listen`](crate::Consumer::listen), [`Listen`](crate::Listen),
/// [`Handler`](crate::Handler), [`Listener`](crate::Listener), [`FailurePolicy`](crate::FailurePolicy),
/// [`Channel::basic_consume_inline`](crate::Channel::basic_consume_inline).
pub mod listeners {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/rpc.md")]
///
/// In the reference: [`rpc`](crate::rpc), [`Listener`](crate::Listener), [`Listen`](crate::Listen).
pub mod rpc {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/transactions.md")]
///
/// In the reference: [`Transaction`](crate::Transaction),
/// [`Channel::transaction`](crate::Channel::transaction).
pub mod transactions {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/errors.md")]
///
/// In the reference: [`Error`](crate::Error), [`Refusal`](crate::Refusal), [`ReplyCode`](crate::ReplyCode),
/// [`Timeout`](crate::Timeout).
pub mod errors {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/events-and-blocked.md")]
///
/// In the reference: [`Event`](crate::Event), [`Events`](crate::Events),
/// [`Connection::on_event`](crate::Connection::on_event),
/// [`Connection::blocked`](crate::Connection::blocked).
pub mod events_and_blocked {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/taps.md")]
///
/// In the reference: [`Connection::set_byte_filter`](crate::Connection::set_byte_filter),
/// [`Connection::set_frame_tap`](crate::Connection::set_frame_tap), [`Frame`](crate::Frame).
pub mod taps {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/threads-and-coroutines.md")]
///
/// In the reference: [`Listen`](crate::Listen), [`Error::Cancelled`](crate::Error::Cancelled).
pub mod threads_and_coroutines {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/shutdown.md")]
///
/// In the reference: [`Connection::shutdown`](crate::Connection::shutdown),
/// [`Connection::request_shutdown`](crate::Connection::request_shutdown),
/// [`Unfinished`](crate::Unfinished).
pub mod shutdown {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/coming-from.md")]
pub mod coming_from {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/questions.md")]
pub mod questions {}

#[cfg(feature = "broker")]
#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/testing.md")]
///
/// In the reference: [`Broker`](crate::broker::Broker), [`BrokerConfig`](crate::broker::BrokerConfig).
pub mod testing {}

#[cfg(feature = "broker")]
#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/broker.md")]
///
/// In the reference: [`broker`](mod@crate::broker), [`direct`](crate::direct).
pub mod broker {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/performance.md")]
pub mod performance {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/glossary.md")]
pub mod glossary {}
