// Node-RED's settings. Nothing secret is written here: passwords come from the environment (.env).
// After a change: iotops up nodered
"use strict";

const crypto = require("crypto");

function needed(name) {
    const value = process.env[name];
    if (!value) {
        throw new Error(`${name} is not set: it belongs into .env of the hub folder`);
    }
    return value;
}

// Compares in constant time; hashing first makes both sides the same length.
function same(left, right) {
    const digest = (text) => crypto.createHash("sha256").update(String(text)).digest();
    return crypto.timingSafeEqual(digest(left), digest(right));
}

const USERS = {
    admin: { username: "admin", permissions: "*" },
    // Only by its token, below; no password fits.
    iotops: {
        username: "iotops",
        permissions: ["flows.read", "flows.write", "nodes.read", "settings.read", "status.read"],
    },
};

module.exports = {
    uiPort: 1880,
    flowFile: "flows.json",
    flowFilePretty: true,
    // Own key: flows_cred.json can be decrypted wherever .env is.
    credentialSecret: needed("NODERED_CREDENTIAL_SECRET"),

    adminAuth: {
        type: "credentials",
        users: async (name) => (Object.hasOwn(USERS, name) ? USERS[name] : null),
        authenticate: async (name, password) =>
            name === "admin" && same(password, needed("NODERED_ADMIN_PASSWORD")) ? USERS.admin : null,
        tokens: [
            {
                token: needed("NODERED_TOKEN"),
                user: "iotops",
                scope: USERS.iotops.permissions,
            },
        ],
    },

    // Context survives a restart: written to /data/context every 30 seconds and at a clean stop.
    contextStorage: { default: { module: "localfilesystem" } },

    // One history of the flows: the branch "flows", written by iotops.
    editorTheme: { projects: { enabled: false } },
    exportGlobalContextKeys: false,
    diagnostics: { enabled: true, ui: true },
    runtimeState: { enabled: false, ui: false },
    telemetry: { enabled: false, updateNotification: false },
    logging: { console: { level: "info", metrics: false, audit: false } },
};
