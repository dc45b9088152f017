-- What an agent believes and what vouches for it: a root is retired only when nobody needs it.
ALTER TABLE agents ADD COLUMN bundle TEXT;    -- SHA-256 of the trust bundle on its disk, as acknowledged
ALTER TABLE agents ADD COLUMN root TEXT;      -- SHA-256 of the key of the root its newest certificate is from
