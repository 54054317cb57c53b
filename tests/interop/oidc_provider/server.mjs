// An OpenID provider of the ordinary kind, on two ports: TLS, and TLS that asks for a client certificate. Clients
// register themselves (RFC 7591). What arrived is told to the test driver, one JSON line for each request.

import { createHash } from 'node:crypto';
import { appendFileSync, readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { join } from 'node:path';
import Provider from 'oidc-provider';

const { INTEROP_STATE: state, PROVIDER_ISSUER: issuer, PROVIDER_MTLS_URL: mtlsUrl } = process.env;
const read = (name) => readFileSync(join(state, name));

// RFC 4514 writes a name from its last part to its first; node gives one line for each part, the first one first.
const subject = (certificate) => certificate.subject.split('\n').reverse().join(',');
const certificateOf = (ctx) => ctx.socket.getPeerX509Certificate?.();

const provider = new Provider(issuer, {
  scopes: ['read', 'write'],
  clientAuthMethods: [
    'client_secret_basic',
    'client_secret_post',
    'client_secret_jwt',
    'private_key_jwt',
    'tls_client_auth',
    'self_signed_tls_client_auth',
  ],
  enabledJWA: { clientAuthSigningAlgValues: ['HS256', 'RS256', 'PS256', 'ES256', 'EdDSA'] },
  // What RFC 8705 section 5 adds to the metadata; this provider leaves it to its configuration.
  discovery: {
    mtls_endpoint_aliases: {
      token_endpoint: `${mtlsUrl}/token`,
      revocation_endpoint: `${mtlsUrl}/token/revocation`,
      introspection_endpoint: `${mtlsUrl}/token/introspection`,
    },
  },
  // Seconds the tokens of a client live: its own wish, at registration.
  extraClientMetadata: { properties: ['token_lifetime'] },
  ttl: { ClientCredentials: (_ctx, _token, client) => client.token_lifetime ?? 600 },
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: false },
    introspection: { enabled: true },
    registration: { enabled: true },
    revocation: { enabled: true },
    mTLS: {
      enabled: true,
      tlsClientAuth: true,
      selfSignedTlsClientAuth: true,
      getCertificate: certificateOf,
      certificateAuthorized: (ctx) => ctx.socket.authorized,
      certificateSubjectMatches: (ctx, property, expected) =>
        property === 'tls_client_auth_subject_dn' && subject(certificateOf(ctx)) === expected,
    },
  },
});

const sha256 = (data) => createHash('sha256').update(data).digest('hex');

provider.use(async (ctx, next) => {
  await next();
  if (!['token', 'revocation', 'introspection'].includes(ctx.oidc?.route)) return;
  const { authorization, client, params } = ctx.oidc;
  const certificate = certificateOf(ctx);
  const line = {
    route: ctx.oidc.route,
    client_id: authorization?.clientId,
    // The method registered for this client, which is the only one that it may use.
    how: client?.clientAuthMethod,
    scope: params?.scope,
    assertion: params?.client_assertion,
    certificate: certificate && sha256(certificate.raw),
    subject: certificate && subject(certificate),
    mtls: ctx.host === new URL(mtlsUrl).host,
    status: ctx.status,
    error: ctx.body?.error,
    access_token: ctx.body?.access_token,
  };
  const text = JSON.stringify(line, (_name, value) => value ?? null);
  appendFileSync(join(state, 'provider-requests.jsonl'), `${text}\n`, { mode: 0o600 });
});

const tls = { key: read('server.key'), cert: read('server.pem'), ca: read('ca.pem') };
const servers = [
  createServer(tls, provider.callback()).listen({ fd: Number(process.env.PROVIDER_FD) }),
  // Whether a certificate is good enough is for the client's authentication method to say.
  createServer({ ...tls, requestCert: true, rejectUnauthorized: false }, provider.callback()).listen({
    fd: Number(process.env.PROVIDER_MTLS_FD),
  }),
];

process.on('SIGTERM', () => {
  for (const server of servers) server.close();
  for (const server of servers) server.closeAllConnections();
});
