use super::*;

const SECRET: &str = "z/t+H:X%=";

fn secret_file(content: &str) -> (tempfile::NamedTempFile, SecretSource) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    let source = SecretSource::File(file.path().into());
    (file, source)
}

/// What one proof puts into a request.
fn authenticate(client_auth: &ClientAuth) -> Form {
    let credentials = client_auth.credentials("1PpG/Q 1").unwrap();
    let mut form = Form::default();
    credentials[0]
        .authenticate("https://as.example", &mut form)
        .unwrap();
    form
}

fn by_secret(method: SecretMethod) -> Form {
    let (_file, secret) = secret_file(SECRET);
    authenticate(&ClientAuth::Secrets(method, vec![secret]))
}

fn decoded(form: &Form) -> String {
    let value = form.authorization.as_ref().unwrap();
    assert!(value.is_sensitive());
    let pair = value.to_str().unwrap().strip_prefix("Basic ").unwrap();
    String::from_utf8(STANDARD.decode(pair).unwrap()).unwrap()
}

/// C-01, with the vector of AppAuth-Android issue 337.
#[test]
fn basic_is_form_urlencoded_first() {
    let form = by_secret(SecretMethod::Basic(BasicEncoding::Form));
    assert_eq!(decoded(&form), "1PpG%2FQ+1:z%2Ft%2BH%3AX%25%3D");
    assert_eq!(form.text(), "", "C-04: one method only");
}

/// C-02
#[test]
fn basic_raw_is_as_it_is() {
    let form = by_secret(SecretMethod::Basic(BasicEncoding::Raw));
    assert_eq!(decoded(&form), "1PpG/Q 1:z/t+H:X%=");
}

/// C-03
#[test]
fn post_is_fully_form_urlencoded() {
    let form = by_secret(SecretMethod::Post);
    assert_eq!(
        form.text(),
        "client_id=1PpG%2FQ+1&client_secret=z%2Ft%2BH%3AX%25%3D"
    );
    assert!(form.authorization.is_none(), "C-04: one method only");
}

/// C-08
#[test]
fn what_is_not_ascii_is_utf8_first() {
    let mut form = Form::default();
    form.append("client_id", "Zoë & Co");
    assert_eq!(form.text(), "client_id=Zo%C3%AB+%26+Co");
}

/// C-04, C-14: the secret signs, and is not sent.
#[test]
fn assertions_stand_in_the_form_alone() {
    let form = by_secret(SecretMethod::Jwt);
    assert!(form.authorization.is_none());
    let start = "client_id=1PpG%2FQ+1&client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3A\
                 client-assertion-type%3Ajwt-bearer&client_assertion=eyJ";
    assert!(form.text().starts_with(start), "{}", form.text());
    assert!(!form.text().contains("client_secret") && !form.text().contains("z%2Ft"));
    assert_eq!(form.text().matches('=').count(), 3);

    let (_file, assertion) = secret_file("eyJ.e30.c2ln\n");
    let form = authenticate(&ClientAuth::AssertionFile(assertion));
    assert!(form.text().ends_with("&client_assertion=eyJ.e30.c2ln"));
    assert!(form.authorization.is_none());
}

/// C-13: the connection proves it.
#[test]
fn with_a_client_certificate_the_form_has_the_client_id_alone() {
    for client_auth in [
        ClientAuth::TlsClientAuth,
        ClientAuth::SelfSignedTlsClientAuth,
    ] {
        let form = authenticate(&client_auth);
        assert_eq!(form.text(), "client_id=1PpG%2FQ+1");
        assert!(form.authorization.is_none());
        assert!(client_auth.demands_client_certificate());
    }
    let by_secret = ClientAuth::Secrets(SecretMethod::Post, Vec::new());
    assert!(!by_secret.demands_client_certificate());
}

/// C-43: a list is read at each use; what cannot be read is passed over as long as there is another.
#[test]
fn of_a_list_of_secrets_those_are_yielded_that_can_be_read() {
    let (first_file, first) = secret_file("one");
    let (second_file, second) = secret_file("two");
    let missing = SecretSource::File("/nonexistent/secret".into());
    let client_auth = ClientAuth::Secrets(SecretMethod::Post, vec![first, missing, second]);
    let read = || client_auth.credentials("shop");
    let credentials = read().unwrap();
    assert_eq!(credentials.len(), 2);
    assert!(!credentials[0].is_same_as(&credentials[1]));
    assert!(read().unwrap()[1].is_same_as(&credentials[1]));
    assert!(!credentials[0].is_platform_assertion());
    assert_eq!(credentials[0].expires_at(), None);

    std::fs::write(first_file.path(), "").unwrap();
    let left = read().unwrap();
    assert_eq!(left.len(), 1);
    assert!(left[0].is_same_as(&credentials[1]), "the second");
    drop(second_file);
    let error = read().err().unwrap();
    assert!(
        error.to_string().ends_with("is empty"),
        "the first: {error}"
    );
}

#[test]
fn credentials_of_another_client_or_another_kind_are_not_the_same() {
    let (_file, secret) = secret_file("one");
    let of = |client_auth: ClientAuth, client_id| client_auth.credentials(client_id).unwrap();
    let by_secret = of(
        ClientAuth::Secrets(SecretMethod::Post, vec![secret.clone()]),
        "shop",
    );
    let others = [
        of(
            ClientAuth::Secrets(SecretMethod::Post, vec![secret]),
            "other",
        ),
        of(ClientAuth::TlsClientAuth, "shop"),
    ];
    for other in others {
        assert!(!by_secret[0].is_same_as(&other[0]));
        assert!(other[0].is_same_as(&other[0]));
    }
}

#[test]
fn an_assertion_of_the_platform_says_when_it_ends() {
    // {"exp":1700000000}
    let (_file, assertion) = secret_file("e30.eyJleHAiOjE3MDAwMDAwMDB9.c2ln\n");
    let credentials = ClientAuth::AssertionFile(assertion)
        .credentials("shop")
        .unwrap();
    assert!(credentials[0].is_platform_assertion());
    let expiry = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
    assert_eq!(credentials[0].expires_at(), Some(expiry));
}
