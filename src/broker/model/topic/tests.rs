use super::*;
use crate::broker::model::Name;

fn queue(number: usize) -> Destination {
    Destination::Queue(Name::from(number.to_string()))
}

/// What the words of a pattern mean, said again in the simplest way.
fn naive(pattern: &[&str], key: &[&str]) -> bool {
    match (pattern, key) {
        ([], []) => true,
        (["#", rest @ ..], _) => naive(rest, key) || (!key.is_empty() && naive(pattern, &key[1..])),
        (["*", pattern @ ..], [_, key @ ..]) => naive(pattern, key),
        ([word, pattern @ ..], [other, key @ ..]) => word == other && naive(pattern, key),
        _ => false,
    }
}

fn split(key: &str) -> Vec<&str> {
    if key.is_empty() { Vec::new() } else { key.split('.').collect() }
}

fn random_key(random: &mut fastrand::Rng, words: &[&str]) -> String {
    let count = random.usize(0..6);
    let chosen: Vec<_> = (0..count).map(|_| words[random.usize(0..words.len())]).collect();
    chosen.join(".")
}

#[test]
fn patterns_match_as_their_words_say() {
    let mut random = fastrand::Rng::with_seed(5);
    for _ in 0..300 {
        let mut trie = TopicTrie::default();
        let mut bound: Vec<String> =
            (0..12).map(|_| random_key(&mut random, &["a", "b", "", "*", "#"])).collect();
        for (number, pattern) in bound.iter().enumerate() {
            trie.insert(pattern.as_bytes(), queue(number));
        }
        // Some go again: the others must not notice.
        for (number, pattern) in bound.iter_mut().enumerate().filter(|(number, _)| number % 3 == 0) {
            trie.remove(pattern.as_bytes(), &queue(number));
            *pattern = "removed".into();
        }
        for _ in 0..30 {
            let key = random_key(&mut random, &["a", "b", "", "c"]);
            let mut found = Vec::new();
            trie.matches(key.as_bytes(), &mut found);
            found.sort();
            found.dedup();
            let mut expected: Vec<_> = (0..bound.len())
                .filter(|&number| naive(&split(&bound[number]), &split(&key)))
                .map(queue)
                .collect();
            expected.sort();
            assert_eq!(found, expected, "{key:?} against {bound:?}");
        }
    }
}

#[test]
fn nothing_is_left_of_what_was_removed() {
    let mut trie = TopicTrie::default();
    for round in 0..3 {
        for number in 0..100 {
            trie.insert(format!("a.{number}.#").as_bytes(), queue(number));
        }
        for number in 0..100 {
            trie.remove(format!("a.{number}.#").as_bytes(), &queue(number));
        }
        assert_eq!(trie.nodes.len() - trie.free.len(), 1, "round {round}");
    }
    assert!(trie.nodes.len() <= 300);
}

/// A matcher that tries every way would not come back.
#[test]
fn many_hashes_take_no_longer_than_many_words() {
    let mut trie = TopicTrie::default();
    trie.insert("#.a.".repeat(50).trim_end_matches('.').as_bytes(), queue(1));
    let mut found = Vec::new();
    trie.matches("a.".repeat(120).as_bytes(), &mut found);
    assert!(found.is_empty());
    trie.matches("a.".repeat(120).trim_end_matches('.').as_bytes(), &mut found);
    assert_eq!(found, [queue(1)]);
}
