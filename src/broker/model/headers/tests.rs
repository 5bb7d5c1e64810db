use super::*;

fn table<const LENGTH: usize>(entries: [(&str, FieldValue); LENGTH]) -> FieldTable {
    entries.into_iter().collect()
}

fn both(arguments: &FieldTable, headers: &FieldTable) -> [bool; 2] {
    [Emulate::RabbitMq3, Emulate::RabbitMq4].map(|emulate| matches(arguments, headers, emulate))
}

#[test]
fn all_and_any() {
    let headers = table([("a", 1.into()), ("b", "x".into())]);
    for (mode, arguments, expected) in [
        ("all", vec![("a", FieldValue::from(1)), ("b", "x".into())], true),
        ("all", vec![("a", 1.into()), ("b", "y".into())], false),
        ("all", vec![("a", 1.into()), ("c", 1.into())], false),
        ("all", vec![], true),
        ("any", vec![("a", 2.into()), ("b", "x".into())], true),
        ("any", vec![("a", 2.into())], false),
        ("any", vec![], false),
        ("all", vec![("a", FieldValue::Void)], true),
        ("all", vec![("c", FieldValue::Void)], false),
    ] {
        let mut table: FieldTable = arguments.clone().into_iter().collect();
        table.insert("x-match", mode);
        assert_eq!(both(&table, &headers), [expected; 2], "{mode} {arguments:?}");
    }
}

#[test]
fn names_with_x_count_only_when_asked_for() {
    let headers = table([("x-a", 1.into())]);
    for (mode, value, expected) in [
        ("all", 2, true),
        ("any", 1, false),
        ("all-with-x", 2, false),
        ("all-with-x", 1, true),
        ("any-with-x", 1, true),
    ] {
        let arguments = table([("x-match", mode.into()), ("x-a", value.into())]);
        assert_eq!(both(&arguments, &headers), [expected; 2], "{mode} {value}");
    }
}

#[test]
fn a_number_is_the_same_in_every_integer_type() {
    let wanted = table([("a", 5i64.into())]);
    assert_eq!(both(&wanted, &table([("a", 5i8.into())])), [true, true]);
    assert_eq!(both(&wanted, &table([("a", 5f64.into())])), [true, false], "4.x is strict");
    assert_eq!(both(&wanted, &table([("a", "5".into())])), [false, false]);
    let list = FieldValue::from(vec![FieldValue::I32(1)]);
    let wanted = table([("a", list.clone())]);
    assert_eq!(both(&wanted, &table([("a", list)])), [true, true]);
    let time = |seconds| FieldValue::Timestamp(seconds);
    assert_eq!(
        both(&table([("a", time(5))]), &table([("a", time(5))])),
        [true, false],
        "4.x has milliseconds"
    );
    assert_eq!(both(&table([("a", time(5000))]), &table([("a", time(5))])), [false, true]);
}

#[test]
fn an_unknown_mode_is_refused() {
    let text = |value: FieldValue| check_binding(&table([("x-match", value)])).unwrap_err().text;
    assert_eq!(
        text("most".into()),
        "PRECONDITION_FAILED - Invalid x-match field value <<\"most\">>; expected all, any, all-with-x, or any-with-x"
    );
    assert_eq!(
        text(5.into()),
        "PRECONDITION_FAILED - Invalid x-match field type signedint (value 5); expected longstr"
    );
    assert!(check_binding(&FieldTable::new()).is_ok());
}
