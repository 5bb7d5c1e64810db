//! Making a sequence that shows something as short as possible.

/// Removes operations for as long as `fails` stays true: large pieces first, then single lines.
pub fn shrink(mut sequence: Vec<String>, mut fails: impl FnMut(&[String]) -> bool) -> Vec<String> {
    let mut piece = sequence.len() / 2;
    while piece > 0 {
        let mut at = 0;
        let mut shorter = false;
        while at < sequence.len() {
            let mut rest = sequence.clone();
            rest.drain(at..(at + piece).min(sequence.len()));
            if fails(&rest) {
                sequence = rest;
                shorter = true;
            } else {
                at += piece;
            }
        }
        if !shorter || piece > 1 {
            piece /= 2;
        }
    }
    sequence
}

#[test]
fn only_what_matters_is_left() {
    let sequence: Vec<String> = (0..50).map(|number| number.to_string()).collect();
    let has = |sequence: &[String], number: &str| sequence.iter().any(|line| line == number);
    let smallest = shrink(sequence, |sequence| has(sequence, "7") && has(sequence, "31"));
    assert_eq!(smallest, ["7", "31"]);
}
