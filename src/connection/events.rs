//! Events: an ordered, bounded feed that never holds up the connection, and listeners on top of it.

use std::{
    collections::VecDeque,
    fmt,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::Connection;
use crate::{
    error::{Error, HandlerFailure, Result, Returned, panic_message},
    sync::{Waiter, lock, spawn, wake_all},
};

/// How many events wait for a slow reader of the feed before the oldest are dropped, confirms first.
const FEED_LENGTH: usize = 1000;

/// How many bytes of returned messages, before the oldest of these are dropped.
const FEED_BYTES: usize = 16 * 1024 * 1024;

/// Something that happened on a connection.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// The connection is open. Always the first event of a feed, unless the connection had ended before.
    Connected,
    /// The broker accepts nothing from publishers for the time being.
    Blocked {
        /// The broker's own words.
        reason: Arc<str>,
    },
    /// The broker accepts messages again.
    Unblocked,
    /// The broker closed a channel.
    ChannelClosed {
        /// The channel's number.
        channel: u16,
        /// Why.
        cause: Error,
    },
    /// The broker cancelled a consumer, usually because its queue was deleted.
    ConsumerCancelled {
        /// The channel's number.
        channel: u16,
        /// The consumer's tag.
        consumer_tag: Arc<str>,
    },
    /// The broker returned a message that matched no queue.
    Returned {
        /// The channel's number.
        channel: u16,
        /// The message.
        returned: Arc<Returned>,
    },
    /// The broker acked or nacked a published message, or all up to it.
    Confirmed {
        /// The channel's number.
        channel: u16,
        /// The number of the publish on its channel.
        sequence_number: u64,
        /// Everything up to this number.
        multiple: bool,
        /// Acked; otherwise nacked.
        acked: bool,
    },
    /// A message handler returned an error or panicked.
    HandlerFailed {
        /// The channel's number.
        channel: u16,
        /// On which delivery, and why.
        failure: Arc<HandlerFailure>,
    },
    /// A listener panicked. It is not called again.
    ListenerFailed {
        /// The message of the panic.
        message: Arc<str>,
    },
    /// A [byte filter](Connection::set_byte_filter) or a [frame tap](Connection::set_frame_tap) panicked. It was
    /// removed, and the connection goes on.
    TapFailed {
        /// Which of the two, and the message of the panic.
        message: Arc<str>,
    },
    /// The connection has ended. Always the last event.
    Closed {
        /// Why; [`Error::Closed`] when the program closed it.
        cause: Error,
    },
}

/// A feed of [`Event`]s, in order: an iterator that waits for the next one and ends after
/// [`Event::Closed`].
///
/// It begins when it is made. It holds up nobody: when 1000 events wait, the oldest are dropped and counted; of these
/// the [`Confirmed`](Event::Confirmed) first. So are the oldest [`Returned`](Event::Returned) when 16 MiB of messages wait.
pub struct Events(Arc<Feed>);

#[derive(Debug, Default)]
struct Feed(Mutex<FeedState>);

#[derive(Debug, Default)]
struct FeedState {
    events: VecDeque<Event>,
    /// Of the returned messages among them.
    bytes: usize,
    missed: u64,
    ended: bool,
    waiting: Vec<Waiter>,
}

impl FeedState {
    fn take(&mut self, place: usize) -> Option<Event> {
        let event = self.events.remove(place)?;
        self.bytes -= event.bytes();
        Some(event)
    }

    fn miss(&mut self, place: usize) {
        self.take(place);
        self.missed += 1;
    }
}

impl Event {
    /// What it keeps of a message.
    fn bytes(&self) -> usize {
        if let Event::Returned { returned, .. } = self { returned.body.len() } else { 0 }
    }
}

impl Feed {
    fn push(&self, event: Event) {
        let mut state = lock(&self.0);
        state.ended |= matches!(event, Event::Closed { .. });
        let size = event.bytes();
        state.bytes += size;
        state.events.push_back(event);
        if state.events.len() > FEED_LENGTH {
            // Confirms come by the thousand, and each is told elsewhere as well: they must not push out an alarm.
            let confirm = state.events.iter().position(|event| matches!(event, Event::Confirmed { .. }));
            state.miss(confirm.unwrap_or(0));
        }
        while size > 0
            && state.bytes > FEED_BYTES
            && let Some(place) = state.events.iter().position(|event| event.bytes() > 0)
            && place + 1 < state.events.len()
        {
            state.miss(place);
        }
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        wake_all(waiting);
    }
}

impl Events {
    /// The next event if one is here. **Does not wait.**
    pub fn try_next(&mut self) -> Option<Event> {
        self.next_before(Some(Instant::now()))
    }

    /// Waits at most `timeout` for the next event; `None` when none came, after the last one, and in a coroutine that
    /// was cancelled.
    pub fn next_timeout(&mut self, timeout: Duration) -> Option<Event> {
        self.next_before(Instant::now().checked_add(timeout))
    }

    /// How many events were dropped so far because nobody took them.
    pub fn missed(&self) -> u64 {
        lock(&self.0.0).missed
    }

    fn next_before(&mut self, deadline: Option<Instant>) -> Option<Event> {
        let waiter = Waiter::new();
        loop {
            let mut state = lock(&self.0.0);
            if let Some(event) = state.take(0) {
                return Some(event);
            }
            if state.ended {
                return None;
            }
            state.waiting.push(waiter.clone());
            drop(state);
            if waiter.park(deadline).is_err() {
                lock(&self.0.0).waiting.retain(|other| !other.is(&waiter));
                return None;
            }
        }
    }
}

impl Iterator for Events {
    type Item = Event;

    /// **Waits without a limit** for the next event; see [`next_timeout`](Events::next_timeout). Ends early in a
    /// coroutine that was cancelled.
    fn next(&mut self) -> Option<Event> {
        self.next_before(None)
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("missed", &self.missed()).finish_non_exhaustive()
    }
}

/// The feeds of one connection.
#[derive(Debug, Default)]
pub(crate) struct Feeds {
    /// Somebody listens. Looked at before an event is made.
    wanted: AtomicBool,
    state: Mutex<FeedsState>,
}

#[derive(Debug, Default)]
struct FeedsState {
    feeds: Vec<Weak<Feed>>,
    /// The last event, once it was.
    closed: Option<Error>,
}

impl Feeds {
    /// Somebody listens.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }

    /// Passes on what `event` makes, if anybody listens. Never waits. The order of the calls is that of the feed.
    pub(crate) fn emit(&self, event: impl FnOnce() -> Event) {
        if !self.is_wanted() {
            return;
        }
        let mut state = lock(&self.state);
        // What the reader had in hand when another thread ended the connection: too late.
        if state.closed.is_none() {
            self.pass_on(&mut state, &event());
        }
    }

    /// The connection has ended: the last event.
    pub(super) fn close(&self, cause: &Error) {
        let mut state = lock(&self.state);
        if state.closed.is_none() {
            state.closed = Some(cause.clone());
            self.pass_on(&mut state, &Event::Closed { cause: cause.clone() });
        }
    }

    fn pass_on(&self, state: &mut FeedsState, event: &Event) {
        state.feeds.retain(|feed| match feed.upgrade() {
            Some(feed) => {
                feed.push(event.clone());
                true
            }
            None => false,
        });
        self.wanted.store(!state.feeds.is_empty(), Ordering::SeqCst);
    }

    fn subscribe(&self) -> Events {
        let feed = Arc::new(Feed::default());
        let mut state = lock(&self.state);
        match &state.closed {
            Some(cause) => feed.push(Event::Closed { cause: cause.clone() }),
            None => {
                feed.push(Event::Connected);
                state.feeds.push(Arc::downgrade(&feed));
                self.wanted.store(true, Ordering::SeqCst);
            }
        }
        Events(feed)
    }
}

impl Connection {
    /// A new feed of events, from now on.
    ///
    /// ```
    /// # #[cfg(feature = "broker")] {
    /// # let broker = leveret::broker::Broker::start();
    /// # let connection = broker.connect()?;
    /// use leveret::Event;
    ///
    /// let events = connection.events();
    /// std::thread::spawn(move || {
    ///     for event in events {
    ///         match event {
    ///             Event::Blocked { reason } => eprintln!("the broker is {reason}"),
    ///             Event::Closed { cause } => eprintln!("the end: {cause}"),
    ///             _ => {}
    ///         }
    ///     }
    /// });
    /// # }
    /// # Ok::<(), leveret::Error>(())
    /// ```
    pub fn events(&self) -> Events {
        self.handle.shared.feeds.subscribe()
    }

    /// Has `listener` called for every event from now on, on a thread of its own (`leveret-events`), which ends
    /// with the connection. Any call of this crate is allowed in it.
    ///
    /// A listener that panics is not called again; the panic is logged, and the other listeners are told
    /// ([`Event::ListenerFailed`]).
    ///
    /// # Errors
    /// [`Error::Io`] if the thread cannot be started.
    pub fn on_event(&self, mut listener: impl FnMut(&Event) + Send + 'static) -> Result<()> {
        let events = self.events();
        // Not the handle: a listener does not keep its connection open.
        let shared = Arc::downgrade(&self.handle.shared);
        let run = move || {
            for event in events {
                let called = panic::catch_unwind(AssertUnwindSafe(|| listener(&event)));
                if let Err(panic) = called {
                    let message: Arc<str> = panic_message(&*panic).into();
                    log::error!(target: "leveret::events", "a listener panicked: {message}");
                    if let Some(shared) = shared.upgrade() {
                        shared.feeds.emit(|| Event::ListenerFailed { message });
                    }
                    return;
                }
            }
        };
        spawn("leveret-events", run).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked(reason: &str) -> Event {
        Event::Blocked { reason: reason.into() }
    }

    /// Row 19: ordered, bounded, never blocking.
    #[test]
    fn a_feed_that_nobody_reads_drops_its_oldest_events_and_counts_them() {
        let feeds = Feeds::default();
        feeds.emit(|| unreachable!("nobody listens"));
        let mut events = feeds.subscribe();
        for number in 0..FEED_LENGTH {
            feeds.emit(|| blocked(&number.to_string()));
        }
        feeds.close(&Error::WouldBlock);
        feeds.emit(|| blocked("too late"));
        assert_eq!(events.missed(), 2, "Connected and the first");
        assert!(matches!(events.try_next(), Some(Event::Blocked { reason }) if &*reason == "1"));
        assert!(matches!(events.by_ref().last(), Some(Event::Closed { .. })));
        assert!(events.try_next().is_none());
    }

    /// Row 19: bounded in bytes as well: the newest of the returned messages stay, and everything else.
    #[test]
    fn a_feed_keeps_few_bytes_of_returned_messages() {
        let feeds = Feeds::default();
        let mut events = feeds.subscribe();
        let returned = |length| {
            let returned = Returned { body: vec![0; length], ..Returned::default() };
            Event::Returned { channel: 1, returned: Arc::new(returned) }
        };
        feeds.emit(|| blocked("stays"));
        for _ in 0..4 {
            feeds.emit(|| returned(FEED_BYTES / 2));
        }
        feeds.emit(|| returned(FEED_BYTES + 1));
        feeds.emit(|| blocked("stays"));
        assert_eq!(events.missed(), 4);
        feeds.emit(|| returned(1));
        assert_eq!(events.missed(), 5);
        feeds.close(&Error::WouldBlock);
        let kept: Vec<usize> = events.by_ref().map(|event| event.bytes()).collect();
        assert_eq!(kept, [0, 0, 0, 1, 0]);
        assert_eq!(lock(&events.0.0).bytes, 0);
    }

    #[test]
    fn every_feed_begins_with_the_state_of_the_connection() {
        let feeds = Feeds::default();
        assert!(matches!(feeds.subscribe().try_next(), Some(Event::Connected)));
        feeds.emit(|| blocked("a feed that is gone is not served"));
        assert!(lock(&feeds.state).feeds.is_empty());
        feeds.close(&Error::WouldBlock);
        feeds.close(&Error::Nacked);
        let all: Vec<Event> = feeds.subscribe().collect();
        assert!(matches!(&all[..], [Event::Closed { cause: Error::WouldBlock }]));
    }
}
