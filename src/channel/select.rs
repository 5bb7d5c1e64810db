//! One wait over many consumers.

use std::{
    borrow::BorrowMut,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use super::{Consumer, Delivery};
use crate::{error::Result, sync::Waiter};

/// Waits for the next delivery of any of several consumers, and says whose it is: its place in the slice.
/// **Waits without a limit**; see [`select_timeout`].
///
/// The consumers may belong to different channels and connections. They take turns: one that is never empty does
/// not keep the others from being heard. The reason why a consumer ended is returned once, as an error; `None`
/// means that all of them have ended.
///
/// ```
/// # #[cfg(feature = "broker")] {
/// # let broker = leveret::broker::Broker::start();
/// # let connection = broker.connect()?;
/// # let channel = connection.channel()?;
/// # for queue in ["urgent", "ordinary"] {
/// #     channel.queue_declare(queue)?;
/// # }
/// # channel.basic_publish("", "ordinary", "order 7")?;
/// let mut consumers = [channel.basic_consume("urgent")?, channel.basic_consume("ordinary")?];
/// while let Some((place, delivery)) = leveret::select(&mut consumers) {
///     let delivery = delivery?;
///     println!("{}: {}", consumers[place].consumer_tag(), delivery.text()?);
///     delivery.ack()?;
/// #     break;
/// }
/// # }
/// # Ok::<(), leveret::Error>(())
/// ```
pub fn select<C: BorrowMut<Consumer>>(consumers: &mut [C]) -> Option<(usize, Result<Delivery>)> {
    select_before(consumers, None)
}

/// Like [`select`], for at most `timeout`; `None` when nothing came, or when all consumers have ended (see
/// [`Consumer::has_ended`]).
pub fn select_timeout<C: BorrowMut<Consumer>>(
    consumers: &mut [C],
    timeout: Duration,
) -> Option<(usize, Result<Delivery>)> {
    select_before(consumers, Instant::now().checked_add(timeout))
}

fn select_before<C: BorrowMut<Consumer>>(
    consumers: &mut [C],
    deadline: Option<Instant>,
) -> Option<(usize, Result<Delivery>)> {
    loop {
        if let Some(found) = look(consumers, None) {
            return Some(found);
        }
        // About to wait: what this program has gathered goes out first.
        for consumer in consumers.iter() {
            consumer.borrow().flush();
        }
        let waiter = Waiter::new();
        let found = look(consumers, Some(&waiter));
        let all_ended = consumers.iter().all(|consumer| consumer.borrow().has_ended());
        let waited = if found.is_none() && !all_ended { Some(waiter.park(deadline)) } else { None };
        // Also those that did not wake us: a queue that stays empty must not gather waiters.
        for consumer in consumers.iter() {
            consumer.borrow().forget_waiter(&waiter);
        }
        match waited {
            Some(Ok(())) => {}
            // As if the first of them had been waited for.
            Some(Err(why)) => {
                let told = consumers.first_mut()?.borrow_mut().given_up(why);
                return told.transpose().map(|told| (0, told));
            }
            None => return found,
        }
    }
}

/// The first of the consumers that has something, beginning with another one each time; leaves the waiter with
/// those that have nothing.
fn look<C: BorrowMut<Consumer>>(
    consumers: &mut [C],
    waiter: Option<&Waiter>,
) -> Option<(usize, Result<Delivery>)> {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    let start = TURN.fetch_add(1, Ordering::Relaxed) % consumers.len().max(1);
    let (before, after) = consumers.split_at_mut(start);
    let in_turn = after.iter_mut().zip(start..).chain(before.iter_mut().zip(0..));
    for (consumer, place) in in_turn {
        if let Some(delivery) = consumer.borrow_mut().take_next(waiter.cloned()).transpose() {
            return Some((place, delivery));
        }
    }
    None
}
