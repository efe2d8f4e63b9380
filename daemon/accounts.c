/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/accounts.h"

#include <assert.h>
#include <stddef.h>

#include "base/mem.h"

struct account *accounts_join(struct accounts *accounts, uint32_t uid)
{
    struct account *account = accounts->first;
    while (account && account->uid != uid)
        account = account->next;
    if (!account) {
        account = larder_alloc_zero(1, sizeof(*account));
        if (!account)
            return NULL;
        account->uid = uid;
        account->next = accounts->first;
        accounts->first = account;
    }
    account->sessions++;
    return account;
}

void accounts_leave(struct accounts *accounts, struct account *account)
{
    assert(account->sessions > 0);
    if (--account->sessions > 0)
        return;
    assert(account->connections == 0);
    assert(account->leases == 0);
    assert(account->in_flight == 0);
    struct account **link = &accounts->first;
    while (*link != account)
        link = &(*link)->next;
    *link = account->next;
    larder_free(account);
}

bool accounts_model_begin(struct accounts *accounts, uint32_t tenant)
{
    struct tenant_account *account = &accounts->tenants[tenant];
    if (account->model_count >= ACCOUNTS_TENANT_MODELS_MAX)
        return false;
    account->model_count++;
    return true;
}

void accounts_model_end(struct accounts *accounts, uint32_t tenant, uint32_t model)
{
    struct tenant_account *account = &accounts->tenants[tenant];
    assert(account->model_count > 0);
    if (model >= LARDER_MODELS_MAX || accounts->models_seen[model / 8] & 1u << model % 8)
        account->model_count--;
    else
        accounts->models_seen[model / 8] |= (uint8_t)(1u << model % 8);
}
