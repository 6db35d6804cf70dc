// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-simulator-impl.h"

#include "ub-event-queue.h"

#include "ns3/abort.h"
#include "ns3/assert.h"
#include "ns3/log.h"
#include "ns3/simulator.h"
#ifdef NS3_MPI
#include "ns3/mpi-interface.h"
#endif

#include <algorithm>

namespace ns3
{

NS_LOG_COMPONENT_DEFINE("UbSimulatorImpl");

NS_OBJECT_ENSURE_REGISTERED(UbSimulatorImpl);

TypeId
UbSimulatorImpl::GetTypeId()
{
    static TypeId tid = TypeId("ns3::UbSimulatorImpl")
                            .SetParent<SimulatorImpl>()
                            .SetGroupName("UbFabric")
                            .AddConstructor<UbSimulatorImpl>();
    return tid;
}

UbSimulatorImpl::UbSimulatorImpl()
    : m_context(Simulator::NO_CONTEXT),
      m_thread(std::this_thread::get_id())
{
    NS_LOG_FUNCTION(this);
}

UbSimulatorImpl::~UbSimulatorImpl()
{
    NS_LOG_FUNCTION(this);
}

void
UbSimulatorImpl::DoDispose()
{
    NS_LOG_FUNCTION(this);
    TakeForeign();
    while (m_events && !m_events->IsEmpty())
    {
        m_events->RemoveNext().impl->Unref();
    }
    m_events = nullptr;
    m_processes.clear();
    SimulatorImpl::DoDispose();
}

void
UbSimulatorImpl::AddProcess(UbWindowedProcess* process)
{
    NS_LOG_FUNCTION(this << process);
    m_processes.push_back(process);
}

void
UbSimulatorImpl::RemoveProcess(UbWindowedProcess* process)
{
    NS_LOG_FUNCTION(this << process);
    std::erase(m_processes, process);
}

void
UbSimulatorImpl::Destroy()
{
    NS_LOG_FUNCTION(this);
    while (!m_destroyEvents.empty())
    {
        const EventId id = m_destroyEvents.front();
        m_destroyEvents.pop_front();
        if (!id.PeekEventImpl()->IsCancelled())
        {
            id.PeekEventImpl()->Invoke();
        }
    }
}

void
UbSimulatorImpl::SetScheduler(ObjectFactory schedulerFactory)
{
    NS_LOG_FUNCTION(this << schedulerFactory);
    Ptr<Scheduler> scheduler = schedulerFactory.Create<Scheduler>();
    while (m_events && !m_events->IsEmpty())
    {
        scheduler->Insert(m_events->RemoveNext());
    }
    m_events = scheduler;
}

uint32_t
UbSimulatorImpl::GetSystemId() const
{
#ifdef NS3_MPI
    return MpiInterface::GetSystemId();
#else
    return 0;
#endif
}

int64_t
UbSimulatorImpl::NextWindow(UbWindowedProcess*& process, int64_t& othersPs) const
{
    int64_t earliest = UB_NEVER;
    othersPs = UB_NEVER;
    for (UbWindowedProcess* candidate : m_processes)
    {
        const int64_t next = candidate->NextTime();
        if (next < earliest)
        {
            othersPs = earliest;
            earliest = next;
            process = candidate;
        }
        else
        {
            othersPs = std::min(othersPs, next);
        }
    }
    return earliest;
}

bool
UbSimulatorImpl::IsFinished() const
{
    UbWindowedProcess* process = nullptr;
    int64_t othersPs;
    return m_stop || (m_events->IsEmpty() && NextWindow(process, othersPs) == UB_NEVER);
}

void
UbSimulatorImpl::ProcessOne()
{
    const Scheduler::Event next = m_events->RemoveNext();
    PreEventHook(EventId(next.impl, next.key.m_ts, next.key.m_context, next.key.m_uid));
    NS_ASSERT(next.key.m_ts >= m_now);
    ++m_eventCount;
    m_now = next.key.m_ts;
    m_context = next.key.m_context;
    m_currentUid = next.key.m_uid;
    next.impl->Invoke();
    next.impl->Unref();
}

int64_t
UbSimulatorImpl::NextOrdinary() const
{
    return m_events->IsEmpty() ? UB_NEVER : static_cast<int64_t>(m_events->PeekNext().key.m_ts);
}

void
UbSimulatorImpl::RunSpread(UbWindowedProcess& process)
{
    NS_ABORT_MSG_IF(m_processes.size() > 1, "nodes are spread by one fabric only");
    while (true)
    {
        TakeForeign();
        const int64_t limitPs = process.Meet(NextOrdinary(), m_stop);
        if (limitPs == UB_NEVER)
        {
            return;
        }
        while (!m_stop && NextOrdinary() < limitPs)
        {
            ProcessOne();
        }
        if (!m_stop && static_cast<uint64_t>(limitPs) > m_now + 1)
        {
            m_now = static_cast<uint64_t>(limitPs - 1); // the same on all, if nobody has stopped
            m_currentUid = EventId::UID::INVALID;
        }
        m_context = Simulator::NO_CONTEXT;
        process.RunWindow(limitPs);
    }
}

void
UbSimulatorImpl::Run()
{
    NS_LOG_FUNCTION(this);
    m_thread = std::this_thread::get_id();
    m_stop = false;
    for (UbWindowedProcess* process : m_processes)
    {
        if (process->IsSpread())
        {
            RunSpread(*process);
            return;
        }
    }
    while (!m_stop)
    {
        TakeForeign();
        const bool hasOrdinary = !m_events->IsEmpty();
        const int64_t ordinary =
            hasOrdinary ? static_cast<int64_t>(m_events->PeekNext().key.m_ts) : UB_NEVER;
        UbWindowedProcess* process = nullptr;
        int64_t othersPs;
        const int64_t window = NextWindow(process, othersPs);
        if (process == nullptr && !hasOrdinary)
        {
            break;
        }
        if (process == nullptr || ordinary <= window)
        {
            ProcessOne();
            continue;
        }
        if (static_cast<uint64_t>(window) > m_now)
        {
            m_now = static_cast<uint64_t>(window);
            m_currentUid = EventId::UID::INVALID; // no event of this instant has run yet
        }
        m_context = Simulator::NO_CONTEXT;
        // no fabric runs ahead of another, or Now() would be wrong in the other's callbacks
        const int64_t limitPs = std::min(ordinary, othersPs == UB_NEVER ? UB_NEVER : othersPs + 1);
        m_now = std::max(m_now, static_cast<uint64_t>(process->RunWindow(limitPs)));
    }
}

void
UbSimulatorImpl::Stop()
{
    NS_LOG_FUNCTION(this);
    m_stop = true;
}

EventId
UbSimulatorImpl::Stop(const Time& delay)
{
    NS_LOG_FUNCTION(this << delay);
    return Simulator::Schedule(delay, &Simulator::Stop);
}

EventId
UbSimulatorImpl::Insert(uint64_t timestamp, uint32_t context, EventImpl* event)
{
    const uint32_t uid = m_uid++;
    m_events->Insert({event, {timestamp, uid, context}});
    return EventId(event, timestamp, context, uid);
}

EventId
UbSimulatorImpl::Schedule(const Time& delay, EventImpl* event)
{
    NS_LOG_FUNCTION(this << delay << event);
    NS_ASSERT_MSG(m_thread == std::this_thread::get_id(),
                  "Simulator::Schedule from another thread; use ScheduleWithContext");
    NS_ASSERT_MSG(delay.IsPositive(), "Simulator::Schedule with a negative delay");
    return Insert(m_now + delay.GetTimeStep(), GetContext(), event);
}

void
UbSimulatorImpl::ScheduleWithContext(uint32_t context, const Time& delay, EventImpl* event)
{
    NS_LOG_FUNCTION(this << context << delay << event);
    if (m_thread == std::this_thread::get_id())
    {
        Insert(m_now + delay.GetTimeStep(), context, event);
        return;
    }
    std::lock_guard lock(m_foreignMutex);
    m_foreign.push_back({context, delay.GetTimeStep(), event});
    m_hasForeign = true;
}

void
UbSimulatorImpl::TakeForeign()
{
    if (!m_hasForeign)
    {
        return;
    }
    std::vector<Foreign> foreign;
    {
        std::lock_guard lock(m_foreignMutex);
        foreign.swap(m_foreign);
        m_hasForeign = false;
    }
    for (const Foreign& item : foreign)
    {
        Insert(m_now + item.delay, item.context, item.event);
    }
}

EventId
UbSimulatorImpl::ScheduleNow(EventImpl* event)
{
    return Schedule(Time(0), event);
}

EventId
UbSimulatorImpl::ScheduleDestroy(EventImpl* event)
{
    EventId id(Ptr<EventImpl>(event, false), m_now, Simulator::NO_CONTEXT, EventId::UID::DESTROY);
    m_destroyEvents.push_back(id);
    ++m_uid;
    return id;
}

Time
UbSimulatorImpl::Now() const
{
    return TimeStep(m_now);
}

Time
UbSimulatorImpl::GetDelayLeft(const EventId& id) const
{
    return IsExpired(id) ? TimeStep(0) : TimeStep(id.GetTs() - m_now);
}

void
UbSimulatorImpl::Remove(const EventId& id)
{
    if (id.GetUid() == EventId::UID::DESTROY)
    {
        m_destroyEvents.remove(id);
        return;
    }
    if (IsExpired(id))
    {
        return;
    }
    m_events->Remove({id.PeekEventImpl(), {id.GetTs(), id.GetUid(), id.GetContext()}});
    id.PeekEventImpl()->Cancel();
    id.PeekEventImpl()->Unref();
}

void
UbSimulatorImpl::Cancel(const EventId& id)
{
    if (!IsExpired(id))
    {
        id.PeekEventImpl()->Cancel();
    }
}

bool
UbSimulatorImpl::IsExpired(const EventId& id) const
{
    if (id.PeekEventImpl() == nullptr || id.PeekEventImpl()->IsCancelled())
    {
        return true;
    }
    if (id.GetUid() == EventId::UID::DESTROY)
    {
        return std::find(m_destroyEvents.begin(), m_destroyEvents.end(), id) ==
               m_destroyEvents.end();
    }
    return id.GetTs() < m_now || (id.GetTs() == m_now && id.GetUid() <= m_currentUid);
}

Time
UbSimulatorImpl::GetMaximumSimulationTime() const
{
    return TimeStep(0x7fffffffffffffffLL);
}

uint32_t
UbSimulatorImpl::GetContext() const
{
    return m_context;
}

uint64_t
UbSimulatorImpl::GetEventCount() const
{
    return m_eventCount;
}

} // namespace ns3
