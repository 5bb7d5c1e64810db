//! What a listener refuses, and whom.

use super::*;

/// What needs queues is refused in words, and what is harmless is answered.
#[test]
fn what_makes_no_sense_is_refused() {
    let _watchdog = watched();
    let (serve, _received) = collecting();
    let listener = serve.start().unwrap();
    type Attempt = fn(&leveret::Channel) -> leveret::Result<()>;
    let refused: &[(&str, Attempt)] = &[
        ("basic.get", |channel| channel.basic_get("q").map(drop)),
        ("transactions", |channel| channel.tx_select()),
        ("bindings of queues", |channel| channel.queue_bind(leveret::QueueBind::new("q", "x", "k"))),
        ("bindings of exchanges", |channel| channel.exchange_bind(leveret::ExchangeBind::new("a", "b", "k"))),
        ("nothing to consume", |channel| channel.basic_consume("q").map(drop)),
    ];
    for (what, attempt) in refused {
        let connection = listener.connect().unwrap();
        let channel = connection.channel().unwrap();
        let error = attempt(&channel).unwrap_err();
        assert_eq!(error.reply_code(), Some(ReplyCode::NotImplemented), "{what}: {error}");
        assert!(error.to_string().contains(what), "{error}");
    }
    let connection = listener.connect().unwrap();
    let channel = connection.channel().unwrap();
    channel.exchange_declare(ExchangeDeclare::new("x", ExchangeKind::Topic)).unwrap();
    let declared = channel.queue_declare(QueueDeclare::new("q").durable(true)).unwrap();
    assert_eq!((&*declared.queue, declared.message_count, declared.consumer_count), ("q", 0, 0));
    let named = channel.queue_declare(QueueDeclare::new("").exclusive(true)).unwrap().queue;
    let mut answers = channel.basic_consume(&*named).unwrap();
    assert_eq!(channel.queue_purge("q").unwrap(), 0);
    channel.flow(true).unwrap();
    channel.queue_delete(&*named).unwrap();
    assert!(matches!(answers.next(), Some(Err(Error::CancelledByServer { .. }))));
    channel.exchange_delete("x").unwrap();

    let other = connection.channel().unwrap();
    let error = other.basic_consume("").unwrap_err();
    assert!(
        error.is_soft() && error.to_string().contains("NOT_FOUND - no previously declared queue"),
        "{error}"
    );
    let (serve, _consumers) = offering();
    let listener = serve.start().unwrap();
    let connection = listener.connect().unwrap();
    let channel = connection.channel().unwrap();
    channel.basic_publish("", "q", "m").unwrap();
    let error = channel.flow(true).unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::NotImplemented), "{error}");
}

#[test]
fn users_and_permissions_count() {
    let _watchdog = watched();
    let (serve, received) = collecting();
    let may_write = Permissions::new("/").write(["*"]);
    let config = BrokerConfig::new()
        .user(User::new("writer", "secret").permissions(may_write))
        .user(User::new("nobody", "secret").permissions(Permissions::new("/")));
    let listener = serve.config(config).start().unwrap();
    let connect = |user: &str| {
        let config = Config::new().credentials(user, "secret");
        listener.connect_with(config)
    };
    publish_on(&connect("writer").unwrap()).publish_confirmed("", "q", "m").unwrap();
    assert_eq!(received.recv_timeout(PATIENCE).unwrap(), "m");
    let connection = connect("nobody").unwrap();
    let error = publish_on(&connection).publish_confirmed("", "q", "m").unwrap_err();
    assert_eq!(error.reply_code(), Some(ReplyCode::AccessRefused), "{error}");
    assert!(matches!(connect("stranger"), Err(Error::AuthenticationFailed(_))));
}

#[test]
fn wrong_settings_and_answers_to_nobody_are_errors() {
    let _watchdog = watched();
    assert!(matches!(Serve::new().workers(0).start(), Err(Error::Invalid(_))));
    let no_addresses: &[SocketAddr] = &[];
    assert!(matches!(Serve::new().listen(no_addresses), Err(Error::Invalid(_))));
    let (sender, errors) = mpsc::channel();
    let listener = Serve::new()
        .messages(move |message: &Published| {
            sender.send(message.reply("nobody asked").unwrap_err())?;
            Ok(())
        })
        .start()
        .unwrap();
    assert!(matches!(listener.uri(), Err(Error::Invalid(_))));
    let connection = listener.connect().unwrap();
    let channel = publish_on(&connection);
    channel.publish_confirmed("", "q", "m").unwrap();
    let asking = Message::text("m").map_properties(|properties| properties.reply_to("nowhere"));
    channel.publish_confirmed("", "q", &asking).unwrap();
    for expected in ["no reply_to", "does not consume from \"nowhere\""] {
        let error = errors.recv_timeout(PATIENCE).unwrap();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
