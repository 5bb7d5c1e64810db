use super::*;
use crate::broker::model::message::{Memory, Message};

fn entry(sequence: u64, priority: u8) -> Entry {
    let message = Message {
        exchange: "".into(),
        routing_keys: vec!["q".into()],
        blind_copies: Vec::new(),
        properties: [0, 0].into(),
        body: [0; 3].into(),
        expiration: None,
        priority: Some(priority),
        persistent: false,
        deaths: Vec::new(),
        charge: Memory::default().charge(0),
    };
    Entry {
        sequence,
        message: std::sync::Arc::new(message).into(),
        expires: None,
        redelivered: false,
        returns: 0,
        lazy: false,
        is_normal: false,
        holder: None,
    }
}

/// Whatever goes out and comes back, in whatever order: the order stays that of priorities and arrival.
#[test]
fn the_order_is_that_of_a_sorted_list() {
    let mut random = fastrand::Rng::with_seed(9);
    for _ in 0..300 {
        let highest = random.u8(0..4);
        let (mut ready, mut out, mut naive) = (Ready::new(highest), Vec::new(), Vec::new());
        let place = |entry: &Entry| {
            let priority = entry.message.priority.unwrap().min(highest);
            (255 - priority, entry.sequence)
        };
        for sequence in 0..60 {
            match random.u8(0..3) {
                0 => {
                    let new = entry(sequence, random.u8(0..6));
                    naive.push(place(&new));
                    ready.push(new);
                }
                1 => {
                    naive.sort_unstable();
                    let expected = if naive.is_empty() { None } else { Some(naive.remove(0)) };
                    let popped = ready.pop();
                    assert_eq!(popped.as_ref().map(place), expected);
                    out.extend(popped);
                }
                _ => {
                    let back: Vec<Entry> = (0..random.usize(0..4))
                        .filter_map(|_| {
                            let chosen = random.usize(..out.len().max(1));
                            (chosen < out.len()).then(|| out.swap_remove(chosen))
                        })
                        .collect();
                    naive.extend(back.iter().map(place));
                    ready.put_back(back);
                }
            }
            assert_eq!((ready.len(), ready.bytes()), (naive.len(), naive.len() * 3));
            naive.sort_unstable();
            assert_eq!(ready.iter().map(place).collect::<Vec<_>>(), naive);
            assert_eq!(ready.head().map(place), naive.first().copied());
        }
    }
}

/// The third turn is the lower level's, unless the upper one has the older message.
#[test]
fn an_older_message_of_high_priority_keeps_its_turn() {
    let order = |priorities: [u8; 6]| {
        let mut ready = Ready::with_turns();
        for (sequence, priority) in (0..).zip(priorities) {
            ready.push(entry(sequence, priority));
        }
        std::iter::from_fn(|| ready.pop()).map(|entry| entry.sequence).collect::<Vec<_>>()
    };
    assert_eq!(order([5, 5, 5, 0, 0, 0]), [0, 1, 2, 3, 4, 5]);
    assert_eq!(order([0, 0, 0, 5, 5, 5]), [3, 4, 0, 5, 1, 2]);
    assert_eq!(order([5, 0, 5, 5, 0, 5]), [0, 2, 1, 3, 5, 4]);
}

#[test]
fn what_is_given_up_together_goes_by_priority() {
    let mut entries = [entry(0, 1), entry(1, 9), entry(2, 0), entry(3, 2)];
    Ready::new(2).sort_by_level(&mut entries);
    assert_eq!(entries.each_ref().map(|entry| entry.sequence), [1, 3, 0, 2]);
}
