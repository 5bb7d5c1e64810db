//! What crosses something else on its way, in the one order that threads take once in a blue moon.

use super::{Phase, fixture::Fixture};
use crate::{
    connection::reader::Demultiplexer,
    error::ReplyCode,
    protocol::{frame::write_method, spec::ChannelClose},
    sync::OneShot,
};
use std::time::Duration;

/// Row 34: a close that waits for room is overtaken by the peer's own, and somebody opens the channel again before it
/// looks: that one stays open.
#[test]
fn a_close_that_was_overtaken_leaves_the_next_channel_alone() {
    let fixture = Fixture::new();
    let channel = &fixture.channels[1];
    let core = channel.core();
    let answer = OneShot::new();
    let mut state = core.lock();
    state.phase = Phase::Closing;
    state.closer = Some(answer.clone());
    drop(state);

    let mut close = Vec::new();
    let refused = ChannelClose { reply_code: 404, ..Default::default() };
    write_method(&mut close, channel.id(), 4096, &refused).unwrap();
    Demultiplexer::new(&fixture.shared).feed(&close).unwrap();
    core.pretend_to_open();

    let closed = core.see_close_through(&answer, Duration::ZERO).unwrap_err();
    assert_eq!(closed.reply_code(), Some(ReplyCode::NotFound));
    channel.basic_publish("", "key", "goes out").unwrap();
}
